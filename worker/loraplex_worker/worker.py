"""The worker process put together: model, engine, step thread, adapter cache, link."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import structlog
import torch

from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import FailedPrecondition
from loraplex_contract.metrics import Family
from loraplex_worker.adapter_cache import AdapterCache
from loraplex_worker.base_model import DTYPES, load_decoder, model_fingerprint
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.engine_port import EnginePort
from loraplex_worker.link import SchedulerLink
from loraplex_worker.metrics_observer import MetricsObserver
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.registration import Registration
from loraplex_worker.settings import WorkerSettings

_LOG: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def run(settings: WorkerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LoraplexError: the model cannot be served with these settings.
        EngineFailed: the step thread is over; the stream to the scheduler ended without a Leave.
    """
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    set_torch_threads(settings.num_threads)
    decoder = await asyncio.to_thread(load_decoder, settings.model, DTYPES[settings.dtype], settings.cpu_kernels)
    if not leave.is_set():
        await serve(settings, decoder, leave)
    _LOG.info("stopped")


async def serve(settings: WorkerSettings, decoder: Decoder, leave: asyncio.Event) -> None:
    """Serve ``decoder`` until ``leave`` is set. Raises as ``run``."""
    config = engine_config(settings, decoder)
    registration = registration_of(settings, decoder, config)
    store = await asyncio.to_thread(AdapterStore, settings.store)
    observer = MetricsObserver() if settings.metrics_listen else None
    port = EnginePort(Engine.for_decoder(decoder, config), observer=observer)
    cache = AdapterCache(
        store,
        config=decoder.config,
        dtype=decoder.lora_dtype,
        budget_bytes=settings.host_cache_bytes,
        num_loaders=settings.num_loaders,
        cpu_kernels=settings.cpu_kernels,
    )
    link = SchedulerLink(settings, registration, port, cache, observer=observer)
    sizes = {"num_pages": config.num_pages, "page_bytes": registration.page_bytes}
    _LOG.info("ready_to_dial", **sizes, computes_with=decoder.computes_with)
    port.start()
    try:
        with _metrics(settings, observer, port, cache, link) as metrics:
            _write_port_file(settings, metrics)
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(port.watch(), name="worker/watch-engine")
                # Says Leave, or cancels the stream if the engine failed; closes its channel either way.
                await link.run(leave)
                watch.cancel()
    finally:
        await _close(port, cache)


@contextlib.contextmanager
def _metrics(
    settings: WorkerSettings,
    observer: MetricsObserver | None,
    port: EnginePort,
    cache: AdapterCache,
    link: SchedulerLink,
) -> Iterator[str]:
    """The address of the metrics; "" where they are off, and nothing is counted."""
    if observer is None:
        yield ""
        return
    # Here and not at the top: a worker without metrics needs no client library for them.
    from loraplex_contract.metrics_endpoint import metrics_served

    def collect() -> list[Family]:
        return observer.collect(port.progress(), port.times(), cache.statistics(), link.state())

    with metrics_served(settings.metrics_listen, collect, process="worker", name=settings.worker_id) as address:
        _LOG.info("metrics_served", metrics=address)
        yield address


def _write_port_file(settings: WorkerSettings, metrics: str) -> None:
    """Atomically, so that a reader sees all of it or nothing."""
    path = settings.port_file
    if path is not None:
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        staging.write_text(json.dumps({"metrics": metrics} if metrics else {}))
        staging.replace(path)


async def _close(port: EnginePort, cache: AdapterCache) -> None:
    """The rest of an orderly end, after the link's Leave: the step thread, then the loaders."""
    if not await port.stop():
        _LOG.error("step_thread_hangs")
    if not await asyncio.to_thread(cache.close):
        _LOG.error("adapter_loader_hangs")


def engine_config(settings: WorkerSettings, decoder: Decoder) -> EngineConfig:
    """Sizes that follow from the settings and the model.

    Raises:
        FailedPrecondition: the pool holds no page, or the context is longer than the model's positions.
    """
    page_bytes = _page_bytes(settings, decoder)
    num_pages = settings.kv_pool_bytes // page_bytes
    if num_pages == 0:
        raise FailedPrecondition(
            f"kv_pool_bytes: {settings.kv_pool_bytes} is less than one page of {page_bytes} bytes; raise it",
            reason="POOL_TOO_SMALL",
        )
    positions = decoder.config.max_position_embeddings
    wanted = settings.max_context_tokens or positions
    if wanted > positions:
        raise FailedPrecondition(
            f"max_context_tokens: {wanted} is more than the model's {positions} positions; lower it",
            reason="CONTEXT_TOO_LONG",
        )
    return EngineConfig(
        num_pages=num_pages,
        page_size=settings.page_size,
        # A sequence that does not fit the whole pool could never run.
        max_context_tokens=min(wanted, num_pages * settings.page_size),
        max_sequences=settings.max_sequences,
        max_step_tokens=settings.max_step_tokens,
        has_prefix_cache=settings.prefix_cache,
    )


def registration_of(settings: WorkerSettings, decoder: Decoder, config: EngineConfig) -> Registration:
    return Registration(
        worker_id=settings.worker_id,
        model_fingerprint=model_fingerprint(Path(settings.model)),
        device=settings.device,
        num_pages=config.num_pages,
        page_size=config.page_size,
        page_bytes=_page_bytes(settings, decoder),
        max_sequences=config.max_sequences,
        max_step_tokens=config.max_step_tokens,
        max_context_tokens=config.max_context_tokens,
        vocab_size=decoder.config.vocab_size,
        adapter_parameter_bytes=decoder.lora_dtype.itemsize,
    )


def set_torch_threads(num_threads: int | None) -> None:
    """Matrix products use every core that this process may run on: a step's length is what every stream waits for."""
    torch.set_num_threads(num_threads or len(os.sched_getaffinity(0)))


def _page_bytes(settings: WorkerSettings, decoder: Decoder) -> int:
    shape = decoder.config
    return KvCache.bytes_per_page(
        num_layers=shape.num_layers,
        page_size=settings.page_size,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=decoder.dtype,
    )
