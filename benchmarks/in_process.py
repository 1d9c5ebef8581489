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
    generate(engine, requests, num_output_tokens=NUM_OUTPUT_TOKENS)
    return time.perf_counter() - start


def generate(engine: Engine, requests: Sequence[Request], *, num_output_tokens: int) -> list[list[int]]:
    """The output tokens of each request, all at once, greedy, fixed lengths."""
    for number, request in enumerate(requests):
        engine.apply(_admit(number + 1, request, num_output_tokens))
    outputs: list[list[int]] = [[] for _ in requests]
    while (report := engine.step()) is not None:
        for emission in report.emissions:
            outputs[emission.sequence_id - 1] += emission.token_ids
    assert all(len(tokens) == num_output_tokens for tokens in outputs)
    return outputs


def _admit(number: int, request: Request, num_output_tokens: int) -> Admit:
    weights = () if request.adapter is None else (AdapterWeight(digest=str(request.adapter), weight=1.0),)
    return Admit(
        sequence_id=number,
        prompt_ids=request.prompt_ids,
        adapters=weights,
        sampling=Sampling(),
        stop=Stop(max_tokens=num_output_tokens),
        grant_tokens=num_output_tokens,
    )
