"""The scheduler process, put together and taken apart."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from loraplex.worker.v1 import frontend_link_pb2_grpc, registry_pb2_grpc, worker_link_pb2_grpc
from loraplex_contract.channel import SERVER_OPTIONS
from loraplex_contract.interceptor import ErrorInterceptor
from loraplex_contract.metrics import Family
from loraplex_contract.metrics_endpoint import metrics_served
from loraplex_scheduler.adapters import Adapters
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.metrics_observer import MetricsObserver
from loraplex_scheduler.model_agreement import ModelAgreement
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.registry_service import RegistryService
from loraplex_scheduler.service import FrontendLink, WorkerLink
from loraplex_scheduler.settings import SchedulerSettings

_log = structlog.get_logger(__name__)


class _Stopped(Exception):
    """Ends the process's tasks after an orderly shutdown."""


async def serve(settings: SchedulerSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    async with Registry(settings.database_url()) as registry:
        term = await registry.begin_term()
        dispatcher = Dispatcher(SchedulerCore(settings.core_config()))
        adapters = Adapters(registry, dispatcher)
        with contextlib.suppress(_Stopped), _metrics(settings, dispatcher, term) as metrics:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(dispatcher.run(), name="dispatcher")
                    tasks.create_task(adapters.run(), name="adapters")
                    await adapters.restore()
                    await _serve_until(stop, settings, dispatcher, adapters, term, metrics)
            except* _Stopped:
                pass


@contextlib.contextmanager
def _metrics(settings: SchedulerSettings, dispatcher: Dispatcher, term: int) -> Iterator[str]:
    """The address of the metrics; "" where they are off, and nothing is counted."""
    if not settings.metrics_listen:
        yield ""
        return
    observer = MetricsObserver(
        model_name=settings.model_name, term=term, max_adapters_per_step=settings.max_adapters_per_step
    )
    dispatcher.observer = observer

    def collect() -> list[Family]:
        return observer.collect(dispatcher.statistics(), num_frontends=dispatcher.num_frontends)

    with metrics_served(settings.metrics_listen, collect, process="scheduler", name="scheduler") as address:
        yield address


async def _serve_until(
    stop: asyncio.Event,
    settings: SchedulerSettings,
    dispatcher: Dispatcher,
    adapters: Adapters,
    term: int,
    metrics: str,
) -> None:
    """Stop listening, let streams end within the grace, then end everything."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
    models = ModelAgreement()
    frontends = FrontendLink(dispatcher, settings, models, term=term)
    workers = WorkerLink(dispatcher, settings, models, term=term)
    frontend_link_pb2_grpc.add_FrontendLinkServiceServicer_to_server(frontends, server)
    worker_link_pb2_grpc.add_WorkerLinkServiceServicer_to_server(workers, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(adapters, dispatcher, term=term), server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port(settings.listen)
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    address = f"{settings.listen.rpartition(':')[0]}:{port}"
    _log.info("scheduler_listening", listen=address, metrics=metrics, term=term)
    if settings.port_file is not None:
        write_port_file(settings.port_file, {"listen": address, "metrics": metrics})
    await stop.wait()
    _log.info("scheduler_stopping")
    await healthy.enter_graceful_shutdown()
    await server.stop(settings.shutdown_grace_s)
    raise _Stopped


def write_port_file(path: Path, addresses: dict[str, str]) -> None:
    """Atomically, so that a reader sees all of it or nothing."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(json.dumps({name: address for name, address in addresses.items() if address}))
    staging.replace(path)
