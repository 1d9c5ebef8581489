"""``loraplex up``: the service, until it is told to stop."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import typer

from loraplex_cli.data_dir import locked
from loraplex_cli.demo_adapters import register_demo_adapters
from loraplex_cli.service import Service, ServiceSettings, running_service
from loraplex_client import AsyncClient


async def until_stopped(work: Coroutine[Any, Any, int], *, code: int = 0, watch_stdin: bool = False) -> int:
    """Awaits the work; SIGTERM, SIGINT, SIGHUP (and the end of stdin) cancel it, so that it cleans up.

    A second signal cancels the clean-up too: then the children are killed.

    Returns:
        What the work returns; ``code`` if it was stopped.
    """
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    was_stopped = False

    def stop() -> None:
        nonlocal was_stopped
        was_stopped = True
        main.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    if watch_stdin:
        loop.add_reader(0, _on_stdin, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not was_stopped:
            raise
        main.uncancel()
        return code
    finally:
        loop.remove_reader(0)


def _on_stdin(stop: Callable[[], None]) -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        stop()


async def serve(settings: ServiceSettings, *, demo_adapters: bool, port_file: Path | None) -> int:
    """Runs the service and says where it is. Raises CommandFailed if it cannot start, or breaks down."""
    with locked(settings.data_dir):
        async with running_service(settings, _tell) as service:
            try:
                if demo_adapters:
                    await _register(service)
                _announce(service, settings, port_file)
                await service.supervisor.wait()
            finally:
                if port_file is not None:
                    port_file.unlink(missing_ok=True)
    return 0


async def _register(service: Service) -> None:
    async with AsyncClient(service.target) as client:
        for adapter in await register_demo_adapters(client):
            typer.echo(f"registered {adapter.name} version {adapter.version.number} ({adapter.version.digest[:12]})")


def _announce(service: Service, settings: ServiceSettings, port_file: Path | None) -> None:
    typer.echo(f"serving on {service.target} (admin {service.admin_target}, logs in {settings.data_dir / 'logs'})")
    typer.echo(f'try: loraplex generate "Who are you?" --target {service.target}    stop: Ctrl-C')
    if port_file is not None:
        staging = port_file.with_name(f"{port_file.name}.tmp")
        staging.write_text(json.dumps({"listen": service.target, "admin_listen": service.admin_target}))
        staging.replace(port_file)


def _tell(line: str) -> None:
    typer.echo(line, err=True)
