"""The whole service of one machine: a scheduler, workers and a frontend under one supervisor."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from loraplex_cli.child import ChildSpec, ListenFlag
from loraplex_cli.console import CommandFailed
from loraplex_cli.model_source import checked_model_folder, demo_model_folder
from loraplex_cli.supervisor import Supervisor
from loraplex_client import AsyncClient
from loraplex_contract.errors import LoraplexError

HEALTHY_TIMEOUT_S: Final = 180.0
POLL_S: Final = 0.05
LOOPBACK: Final = "127.0.0.1:0"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What ``loraplex up`` was asked for."""

    data_dir: Path
    model: Path | None = None
    """None = the demo model."""
    listen: str = LOOPBACK
    admin_listen: str = LOOPBACK
    num_workers: int = 1
    dtype: str | None = None
    has_metrics: bool = False
    """Every process serves /metrics on a free port of loopback; its file in ``<data_dir>/run`` says which."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that answers."""

    target: str
    admin_target: str
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def running_service(settings: ServiceSettings, tell: Callable[[str], None]) -> AsyncIterator[Service]:
    """Yields when the service is healthy; when left, every process has ended.

    Raises:
        CommandFailed: a port is taken, the model is not there, or a process does not start; with the end of its log.
    """
    for address in (settings.listen, settings.admin_listen):
        check_loopback(address)
        check_free(address)
    model = checked_model_folder(settings.model) if settings.model else await demo_model_folder()
    async with Supervisor(settings.data_dir / "logs", tell=tell) as supervisor:
        scheduler = await supervisor.start(scheduler_spec(settings, model))
        address = scheduler.addresses["listen"]
        for number in range(settings.num_workers):
            await supervisor.start(worker_spec(settings, model, address, number))
        frontend = await supervisor.start(frontend_spec(settings, model, address))
        service = Service(
            target=frontend.addresses["listen"],
            admin_target=frontend.addresses["admin_listen"],
            supervisor=supervisor,
        )
        await supervisor.watch(until_healthy(service.target, settings))
        supervisor.settle()
        yield service


async def until_healthy(target: str, settings: ServiceSettings) -> None:
    """Returns when every worker has joined. Raises CommandFailed when that takes too long."""
    last = "no answer"
    try:
        async with asyncio.timeout(HEALTHY_TIMEOUT_S), AsyncClient(target) as client:
            while True:
                try:
                    num_ready = (await client.server_info(timeout_s=5)).num_ready_workers
                except LoraplexError as error:
                    last = error.message
                else:
                    last = f"{num_ready} of {settings.num_workers} workers are ready"
                    if num_ready >= settings.num_workers:
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        logs = settings.data_dir / "logs"
        raise CommandFailed(f"not healthy after {HEALTHY_TIMEOUT_S:g} s: {last}; see {logs}") from None


def scheduler_spec(settings: ServiceSettings, model: Path) -> ChildSpec:
    """The scheduler listens on loopback only: nobody but our own processes has business there."""
    flags = ("--state-dir", str(settings.data_dir / "state"), "--model-name", model.name)
    return ChildSpec(
        name="scheduler",
        command=(*_module("loraplex_scheduler"), *flags),
        listen=(ListenFlag(flag="--listen", key="listen", address=LOOPBACK), *_metrics(settings)),
        port_file=settings.data_dir / "run" / "scheduler.json",
    )


def worker_spec(settings: ServiceSettings, model: Path, scheduler: str, number: int) -> ChildSpec:
    """Workers share the machine's cores evenly."""
    flags = [*_shared(settings, model, scheduler), "--worker-id", f"worker-{number}"]
    if settings.dtype is not None:
        flags += ["--dtype", settings.dtype]
    if settings.num_workers > 1:
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        flags += ["--num-threads", str(max(1, num_cores // settings.num_workers))]
    if settings.has_metrics:
        # Not the spec's port file: the frontend need not wait for the model to be loaded.
        port_file = settings.data_dir / "run" / f"worker-{number}.json"
        flags += ["--metrics-listen", LOOPBACK, "--port-file", str(port_file)]
    return ChildSpec(name=f"worker-{number}", command=(*_module("loraplex_worker"), *flags))


def frontend_spec(settings: ServiceSettings, model: Path, scheduler: str) -> ChildSpec:
    """One user, one machine: adapters may come from any local folder, also by the uri of a request."""
    roots = ("--adapter-roots", "/", "--allow-request-uri", "true")
    return ChildSpec(
        name="frontend",
        command=(*_module("loraplex_frontend"), *_shared(settings, model, scheduler), *roots),
        listen=(
            ListenFlag(flag="--listen", key="listen", address=settings.listen),
            ListenFlag(flag="--admin-listen", key="admin_listen", address=settings.admin_listen),
            *_metrics(settings),
        ),
        port_file=settings.data_dir / "run" / "frontend.json",
    )


def _metrics(settings: ServiceSettings) -> tuple[ListenFlag, ...]:
    if not settings.has_metrics:
        return ()
    return (ListenFlag(flag="--metrics-listen", key="metrics", address=LOOPBACK),)


def check_loopback(address: str) -> None:
    """Raises CommandFailed for an address that others can reach: here nobody is asked for a credential."""
    host = address.rpartition(":")[0].strip("[]")
    if host and host != "localhost" and not host.startswith("127.") and host != "::1":
        raise CommandFailed(
            f"{address}: `loraplex up` is for one user on this machine: give a loopback address; "
            "to serve a network, run `loraplex scheduler`, `worker` and `frontend` with --auth-keys-file"
        )


def check_free(address: str) -> None:
    """Raises CommandFailed for an address that is malformed or taken."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise CommandFailed(f"{address!r} is no address: give HOST:PORT, e.g. 127.0.0.1:50051")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        raise CommandFailed(f"cannot listen on {address}: {error.strerror or error}; choose another address") from None


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def _shared(settings: ServiceSettings, model: Path, scheduler: str) -> tuple[str, ...]:
    return ("--scheduler", scheduler, "--model", str(model), "--store", str(settings.data_dir / "store"))
