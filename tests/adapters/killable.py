"""A frontend and a scheduler that kill themselves, as kill -9 does, where a file tells them to.

The commit points of a registration are wrapped from outside; the product has no switch for this.
"""

import asyncio
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraplex_adapters import store as store_module
from loraplex_adapters.store import AdapterStore
from loraplex_contract.logs import configure_logs
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.server import Frontend
from loraplex_frontend.settings import FrontendSettings
from loraplex_frontend.sources.file_copy import FileCopy
from loraplex_frontend.uploads.upload_store import UploadStore
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.server import serve
from loraplex_scheduler.settings import SchedulerSettings


class Killer:
    """Ends this process at the point that the file names."""

    def __init__(self, armed: Path) -> None:
        self._armed = armed

    def reach(self, point: str) -> None:
        if self._armed.read_text() == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, point: str) -> None:
        """``<point>: before`` and ``<point>: after`` a function or a coroutine function of ``owner``."""
        real: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reach(f"{point}: before")
            result = real(*args, **kwargs)
            self.reach(f"{point}: after")
            return result

        @functools.wraps(real)
        async def await_call(*args: Any, **kwargs: Any) -> Any:
            self.reach(f"{point}: before")
            result = await real(*args, **kwargs)
            self.reach(f"{point}: after")
            return result

        setattr(owner, name, await_call if asyncio.iscoroutinefunction(real) else call)

    def write_half(self, path: Path, parts: Any) -> None:
        """In place of the store's: dies with half of the file written."""
        if self._armed.read_text() == f"half of {path.name}":
            data = b"".join(parts)
            with path.open("xb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        _WRITE_FILE(path, parts)


_WRITE_FILE = store_module._write_file


def run_frontend(settings: dict[str, Any], armed: Path) -> None:
    killer = Killer(armed)
    for owner, name, point in (
        (RegistryClient, "begin", "tell the registry"),
        (AdapterStore, "_new_temporary", "make a temporary folder"),
        (AdapterStore, "_publish", "publish"),
        (RegistryClient, "commit", "ask for the commit"),
        (UploadStore, "discard", "discard the upload"),
        (FileCopy, "take", "copy a file"),
    ):
        killer.around(owner, name, point)
    store: Any = store_module
    store._write_file = killer.write_half
    killer.around(store, "_write_version", "write the files")
    configure_logs("error")
    asyncio.run(_serve_frontend(Frontend(FrontendSettings(**settings))))


async def _serve_frontend(frontend: Frontend) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, frontend.stop)
    await frontend.run()


def run_scheduler(settings: dict[str, Any], armed: Path) -> None:
    killer = Killer(armed)
    killer.around(Registry, "_insert_entry", "insert the name")
    killer.around(Registry, "_commit", "write the rows")
    killer.around(Registry, "commit", "commit the transaction")
    configure_logs("error")
    asyncio.run(serve(SchedulerSettings(**settings)))
