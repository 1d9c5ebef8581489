"""A tiny random Llama on disk, adapters for it in a store, and a worker that serves it inside the test's loop."""

import asyncio
import contextlib
import hashlib
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from loraplex_adapters.digest import adapter_digest, payload_digest
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.module import Module
from loraplex_adapters.spec import AdapterSpec, LoraSite
from loraplex_adapters.store import AdapterStore
from loraplex_adapters.tensor import TensorBytes
from loraplex_worker import worker
from loraplex_worker.base_model import load_decoder
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.settings import WorkerSettings

HIDDEN = 32
VOCAB = 97
PAGE_SIZE = 4
PAGE_BYTES = 2 * 2 * PAGE_SIZE * 2 * 8 * 4
"""layers * (K and V) * tokens * KV heads * head_dim * bytes of a float32."""
NUM_PAGES = 64
RANK = 8
ADAPTER_PAGES = 2
"""Of one adapter of ``put_adapter``: 512 float32."""


def save_tiny_llama(folder: Path) -> Path:
    """Two layers, float32; logits far enough apart that greedy output is stable."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def tiny_decoder(folder: Path) -> Decoder:
    return load_decoder(folder, torch.float32)


def put_adapter(store: AdapterStore, seed: int) -> str:
    """A strong rank-8 adapter on q_proj of layer 0; its digest."""
    numbers = np.random.default_rng(seed)
    site = LoraSite(layer=0, module=Module.Q_PROJ, rank=RANK, scale=4.0)
    shapes = {"layers.0.q_proj.A": (RANK, HIDDEN), "layers.0.q_proj.B": (HIDDEN, RANK)}
    tensors = {
        name: TensorBytes("F32", shape, numbers.normal(size=shape).astype("<f4").tobytes())
        for name, shape in shapes.items()
    }
    num_bytes = sum(len(tensor.data) for tensor in tensors.values())
    digest = adapter_digest(
        kind=AdapterKind.LORA, dtype="F32", num_bytes=num_bytes, sites=[site], payload=payload_digest(tensors)
    )
    spec = AdapterSpec(
        digest=digest,
        kind=AdapterKind.LORA,
        sites=(site,),
        dtype="F32",
        num_bytes=num_bytes,
        max_rank=RANK,
        base_model_name="tiny",
    )
    store.put(spec, tensors)
    return digest


def absent_digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def tiny_settings(model: Path, store: Path, address: str, **changes: Any) -> WorkerSettings:
    fields: dict[str, Any] = {
        "scheduler": address,
        "model": model,
        "store": store,
        "worker_id": "tiny",
        "dtype": "fp32",
        "kv_pool_bytes": NUM_PAGES * PAGE_BYTES,
        "page_size": PAGE_SIZE,
        "max_sequences": 16,
        "max_step_tokens": 32,
        "num_threads": 1,
    }
    return WorkerSettings(**fields | changes)


@contextlib.asynccontextmanager
async def serving(settings: WorkerSettings, decoder: Decoder) -> AsyncIterator[asyncio.Event]:
    """A worker as its process runs it, but for the signal; gives the event that makes it leave."""
    leave = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.serve(settings, decoder, leave), name="tiny-worker")
        try:
            yield leave
        finally:
            leave.set()
