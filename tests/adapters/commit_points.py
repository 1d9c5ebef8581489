"""Registrations cut by kill -9 at each of their commit points: ``python -m tests.adapters.commit_points --kills 200``.

After the restart the name is absent (or as it was), or complete; every version in the store is whole; and the same call
with the same request id then succeeds.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from tests.adapters.killable import run_frontend, run_scheduler
from tests.frontend.adapter_folder import write_adapter
from tests.frontend.tiny_model import write_model_folder
from tests.frontend.web_server import WebServer, files

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_adapters.store import AdapterStore

FRONTEND: Final = "frontend"
SCHEDULER: Final = "scheduler"
FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
WAIT_S: Final = 30.0


@dataclasses.dataclass(frozen=True)
class Point:
    """Where which process dies."""

    process: str
    name: str
    origin: str = "folder"
    is_new_only: bool = False
    """Not reached by an update."""


def _around(process: str, name: str, **fields: Any) -> tuple[Point, Point]:
    return Point(process, f"{name}: before", **fields), Point(process, f"{name}: after", **fields)


POINTS: Final = (
    *_around(FRONTEND, "tell the registry"),
    *_around(FRONTEND, "make a temporary folder"),
    Point(FRONTEND, "half of adapter.safetensors"),
    Point(FRONTEND, "half of spec.json"),
    *_around(FRONTEND, "write the files"),
    *_around(FRONTEND, "publish"),
    *_around(FRONTEND, "ask for the commit"),
    *_around(FRONTEND, "discard the upload", origin="upload"),
    *_around(FRONTEND, "copy a file", origin="web"),
    *_around(SCHEDULER, "insert the name", is_new_only=True),
    *_around(SCHEDULER, "write the rows"),
    *_around(SCHEDULER, "commit the transaction"),
)


class Killable:
    """One of the two processes, on the same address in every life. Lives are forked from a warm parent."""

    def __init__(self, target: Callable[..., None], settings: dict[str, Any], armed: Path, port_file: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.adapters.killable"])
        self._target = target
        self.settings = {**settings, "port_file": port_file}
        self._armed = armed
        self._port_file = port_file
        self._process: Any = None

    async def start(self) -> str:
        """Its address, once it listens."""
        self._port_file.unlink(missing_ok=True)
        self._process = self._context.Process(target=self._target, args=(self.settings, self._armed))
        self._process.start()
        await until(self._port_file.exists, "it listens")
        self.settings["listen"] = address = str(json.loads(self._port_file.read_text())["listen"])
        return address

    async def restart_after_kill(self) -> None:
        await until(lambda: self._process.exitcode is not None, "it was killed")
        assert self._process.exitcode == -9, self._process.exitcode
        await self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join(10)
            if self._process.exitcode is None:
                self._process.kill()
                self._process.join(10)


@dataclasses.dataclass(frozen=True)
class Registration:
    """What is asked for, twice."""

    name: str
    is_update: bool
    origin: dict[str, Any]
    digest: str
    digest_before: str


class CommitPoints:
    """Both processes, and the folders that they share."""

    def __init__(self, folder: Path, web: WebServer) -> None:
        self._folder = folder
        self._web = web
        self._armed = folder / "armed"
        self._armed.write_text("")
        self.store = AdapterStore(folder / "store")
        common = {"listen": "127.0.0.1:0", "log_level": "error"}
        self._scheduler = Killable(
            run_scheduler, {**common, "state_dir": folder / "state"}, self._armed, folder / "scheduler.json"
        )
        frontend = {
            **common,
            "admin_listen": "127.0.0.1:0",
            "model": write_model_folder(folder / "model"),
            "store": folder / "store",
            "adapter_roots": (folder,),
            "adapter_sources": (web.url,),
            "drain_grace_s": 0.0,
        }
        self._frontend = Killable(run_frontend, frontend, self._armed, folder / "frontend.json")
        self.outcomes: collections.Counter[str] = collections.Counter()
        """How the kills left the name."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["CommitPoints"]:
        try:
            self._frontend.settings["scheduler"] = await self._scheduler.start()
            address = await self._frontend.start()
            async with grpc.aio.insecure_channel(
                address, options=(("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100))
            ) as channel:
                self._stub: Any = adapter_pb2_grpc.AdapterServiceStub(channel)
                yield self
        finally:
            self._frontend.stop()
            self._scheduler.stop()

    async def kill_at(self, point: Point, number: int, *, is_update: bool) -> None:
        """One registration that dies there, and what must hold after."""
        registration = await self._prepare(point, number, is_update=is_update)
        self._armed.write_text(point.name)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._register(registration, timeout_s=WAIT_S)
        process = self._frontend if point.process == FRONTEND else self._scheduler
        self._armed.write_text("")
        await process.restart_after_kill()
        await self._check_left(registration)
        entry = await self._register(registration, timeout_s=WAIT_S)
        assert (entry.version.digest, entry.state) == (registration.digest, adapter_pb2.ADAPTER_STATE_READY)
        assert entry.version.number == 1 + is_update
        self._check_store(entry.version.digest)

    async def _prepare(self, point: Point, number: int, *, is_update: bool) -> Registration:
        name = f"adapter-{number}"
        before = ""
        if is_update:
            first = write_adapter(self._folder / "sources" / f"{number}-before", seed=2 * number + 1)
            before = (await self._unarmed(name, first)).version.digest
        source = write_adapter(self._folder / "sources" / f"{number}", seed=2 * number)
        would_be = adapter_pb2.RegisterAdapterRequest(name=f"{name}-x", uri=source.as_uri(), validate_only=True)
        digest = (await self._stub.RegisterAdapter(would_be, wait_for_ready=True)).adapter.version.digest
        origin = {"uri": source.as_uri()}
        if point.origin == "upload":
            origin = {"upload_id": await self._upload(source)}
        elif point.origin == "web":
            self._web.answers[f"/{number}/"] = files(source)
            origin = {"uri": f"{self._web.url}/{number}"}
        return Registration(name, is_update, origin, digest, before)

    async def _unarmed(self, name: str, folder: Path) -> adapter_pb2.Adapter:
        request = adapter_pb2.RegisterAdapterRequest(name=name, uri=folder.as_uri())
        adapter: adapter_pb2.Adapter = (await self._stub.RegisterAdapter(request, wait_for_ready=True)).adapter
        return adapter

    async def _upload(self, folder: Path) -> str:
        messages = []
        for name in FILES:
            data = (folder / name).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            header = adapter_pb2.UploadHeader(file_name=name, num_bytes=len(data), sha256=sha256)
            messages += [
                adapter_pb2.UploadAdapterRequest(header=header),
                adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.UploadChunk(data=data)),
                adapter_pb2.UploadAdapterRequest(trailer=adapter_pb2.UploadTrailer()),
            ]
        return str((await self._stub.UploadAdapter(iter(messages), wait_for_ready=True)).upload_id)

    async def _register(self, registration: Registration, *, timeout_s: float) -> adapter_pb2.Adapter:
        request = adapter_pb2.RegisterAdapterRequest(
            name=registration.name, allow_update=True, request_id=f"r-{registration.name}", **registration.origin
        )
        call = self._stub.RegisterAdapter(request, timeout=timeout_s, wait_for_ready=True)
        adapter: adapter_pb2.Adapter = (await call).adapter
        return adapter

    async def _check_left(self, registration: Registration) -> None:
        """Absent or as before, or complete: nothing between."""
        for digest in self.store.digests():
            self._check_store(digest)
        found = await self._digest_of(registration.name)
        assert found in (registration.digest_before, registration.digest), found
        if found:
            self._check_store(found)
        self.outcomes["complete" if found == registration.digest else "as before" if found else "absent"] += 1

    async def _digest_of(self, name: str) -> str:
        request = adapter_pb2.GetAdapterRequest(name=name)
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                return str((await self._stub.GetAdapter(request, wait_for_ready=True)).adapter.version.digest)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return ""
                # The frontend finds the new scheduler a moment after it listens.
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.02)

    def _check_store(self, digest: str) -> None:
        """Every byte is read and hashed."""
        assert self.store.read_spec(digest).digest == digest
        assert self.store.read_tensors(digest)


async def until(question: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not question():
        assert time.monotonic() < deadline_s, f"after {WAIT_S} s still not: {what}"
        await asyncio.sleep(0.005)


async def run_kills(folder: Path, num_kills: int, points: Sequence[Point] = POINTS) -> collections.Counter[str]:
    """Through all points in turn; new names and updates in turn."""
    async with WebServer().serving() as web, CommitPoints(folder, web).running() as service:
        for number, point in zip(range(num_kills), itertools.cycle(points), strict=False):
            is_update = number // len(points) % 2 == 1 and not point.is_new_only
            await service.kill_at(point, number, is_update=is_update)
        return service.outcomes


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    kills: int = parser.parse_args().kills
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        outcomes = asyncio.run(run_kills(Path(name), kills))
    left = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    sys.stdout.write(
        f"{kills} kills at {len(POINTS)} points in {time.monotonic() - began_s:.0f} s: {left}; none half\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
