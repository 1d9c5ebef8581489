"""Copies one file of a source to disk: capped, hashed on the way, and whole or not at all."""

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

from loraplex_frontend.sources import source_errors
from loraplex_frontend.sources.opened_file import OpenedFile
from loraplex_frontend.sources.rate_guard import RateGuard
from loraplex_frontend.sources.source_limits import SourceLimits

_WRITE_BYTES: Final = 1 << 20


class Run(Protocol):
    """Runs work off the event loop."""

    def __call__(self, work: Callable[[], Any], /) -> Awaitable[Any]: ...


class FileCopy:
    """
    Args:
        run: for everything that touches the disk.
        max_bytes: of this file.
    """

    def __init__(self, path: Path, *, run: Run, max_bytes: int, limits: SourceLimits) -> None:
        self._path = path
        self._run = run
        self._max_bytes = max_bytes
        self._limits = limits
        self._guard = RateGuard(limits)
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    async def take(self, file: OpenedFile) -> str:
        """The sha256 of what is on disk now.

        Raises:
            FailedPrecondition: larger than the cap, before more than the cap is stored (ADAPTER_TOO_LARGE).
            DeadlineExceeded: silent or slow (SOURCE_TIMEOUT).
            Unavailable: not the bytes that were announced (SOURCE_BROKEN).
            ResourceExhausted: no room on the disk (FETCHES_FULL).
        """
        if file.num_bytes is not None and file.num_bytes > self._max_bytes:
            raise source_errors.too_large(self._path.name, self._max_bytes)
        fd = await self._run(lambda: os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            await self._copy(file, fd)
        finally:
            os.close(fd)
        self._check(file)
        return self._hash.hexdigest()

    async def _copy(self, file: OpenedFile, fd: int) -> None:
        waiting = bytearray()
        while (chunk := await self._next(file)) is not None:
            self._num_bytes += len(chunk)
            if self._num_bytes > self._max_bytes:
                raise source_errors.too_large(self._path.name, self._max_bytes)
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                data, waiting = bytes(waiting), bytearray()
                await self._write(fd, data)
        await self._write(fd, bytes(waiting))

    async def _next(self, file: OpenedFile) -> bytes | None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.read_s):
                chunk = await anext(file.chunks, None)
        except TimeoutError:
            raise source_errors.too_slow(f"was silent for {self._limits.read_s:g} s") from None
        if chunk is not None:
            self._guard.add(len(chunk), time.monotonic() - began_s)
        return chunk

    async def _write(self, fd: int, data: bytes) -> None:
        def write() -> None:
            self._hash.update(data)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]

        try:
            await self._run(write)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise source_errors.no_room("the server has no room for the adapter's files now") from None

    def _check(self, file: OpenedFile) -> None:
        if file.num_bytes is not None and self._num_bytes != file.num_bytes:
            raise source_errors.broken(f"sent {self._num_bytes} of {file.num_bytes} bytes of {self._path.name}")
        if file.sha256 and self._hash.hexdigest() != file.sha256:
            raise source_errors.broken(f"sent other bytes of {self._path.name} than the digest that it announced")
