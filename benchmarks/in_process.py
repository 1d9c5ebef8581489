"""The engine alone, without processes or gRPC: the ceiling that the service is measured against."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.workload import NUM_OUTPUT_TOKENS, Request
from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.ingest import ingest
from loraplex_adapters.limits import Limits
from loraplex_adapters.store import AdapterStore
from loraplex_worker.engine.command import AdapterWeight, Admit, AttachAdapter, Sampling, Stop
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights


def load_engine(model: Path, adapters: Sequence[Path], store: Path) -> Engine:
    """bf16, with every adapter attached under its number."""
    config = ModelConfig.from_folder(model)
    decoder = Decoder(config, load_weights(model, config, torch.bfloat16))
    engine = Engine.for_decoder(decoder, EngineConfig(num_pages=1024, max_context_tokens=512, max_sequences=64))
    versions, base = AdapterStore(store), BaseShape.from_folder(model)
    for number, folder in enumerate(adapters):
        spec = ingest(folder, base=base, store=versions, limits=Limits()).spec
        tensors = versions.read_tensors(spec.digest)
        weights = LoraWeights.from_tensors(spec, tensors, dtype=decoder.lora_dtype, config=config)
        engine.apply(AttachAdapter(digest=str(number), weights=weights, num_pages=1))
    return engine


def run(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds from the first admission to the last token, all requests at once, greedy, fixed lengths."""
    start = time.perf_counter()
    for number, request in enumerate(requests, start=1):
        engine.apply(_admit(number, request))
    num_tokens = 0
    while (report := engine.step()) is not None:
        num_tokens += sum(len(emission.token_ids) for emission in report.emissions)
    assert num_tokens == len(requests) * NUM_OUTPUT_TOKENS, num_tokens
    return time.perf_counter() - start


def _admit(number: int, request: Request) -> Admit:
    weights = () if request.adapter is None else (AdapterWeight(digest=str(request.adapter), weight=1.0),)
    return Admit(
        sequence_id=number,
        prompt_ids=request.prompt_ids,
        adapters=weights,
        sampling=Sampling(),
        stop=Stop(max_tokens=NUM_OUTPUT_TOKENS),
        grant_tokens=NUM_OUTPUT_TOKENS,
    )
