"""A web server that misbehaves on order: raw HTTP/1.1 over loopback, one answer a connection."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

Answer = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]
_REASONS = {200: "OK", 206: "Partial Content", 302: "Found"}


@dataclasses.dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]

    @property
    def file_name(self) -> str:
        return unquote(self.path.partition("?")[0]).rpartition("/")[2]


class WebServer:
    """``answers`` by prefix of the path, the longest first; else 404."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.stopping = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["WebServer"]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.stopping.set()
            server.close()
            await server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                asked = _parse(await reader.readuntil(b"\r\n\r\n"))
                self.asked.append(asked)
                prefixes = sorted((prefix for prefix in self.answers if asked.path.startswith(prefix)), key=len)
                await (self.answers[prefixes[-1]] if prefixes else status(404))(asked, writer)
                await writer.drain()
        finally:
            writer.close()

    def hang(self) -> Answer:
        async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await self.stopping.wait()

        return answer

    def trickle(self, folder: Path) -> Answer:
        """A byte now and then."""

        async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
            data = (folder / asked.file_name).read_bytes()
            writer.write(head(200, f"Content-Length: {len(data)}"))
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), 0.02)
                    return

        return answer


def _parse(data: bytes) -> Asked:
    first, *lines = data.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    return Asked(first.split(" ")[1], {name.lower(): value for name, value in headers.items()})


def head(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} {_REASONS.get(code, 'X')}", *headers, "", ""]).encode()


def status(code: int, *headers: str) -> Answer:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(code, "Content-Length: 0", *headers))

    return answer


def redirect(location: str, *headers: str) -> Answer:
    """``{name}`` in the location is the file's."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(302, "Content-Length: 0", f"Location: {location.format(name=asked.file_name)}", *headers))

    return answer


def files(folder: Path, *headers: str, announced: int = 0, sent: float = 1.0, more: bytes = b"") -> Answer:
    """
    Args:
        announced: bytes more (or fewer) in Content-Length than the file has.
        sent: the part of the file that is sent, before the connection closes.
        more: after the file.
    """

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        data = (folder / asked.file_name).read_bytes()
        writer.write(head(200, f"Content-Length: {len(data) + announced}", *headers))
        writer.write(data[: int(len(data) * sent)] + more)

    return answer


def endless(asked: Asked, writer: asyncio.StreamWriter) -> Awaitable[None]:
    async def answer() -> None:
        writer.write(head(200, "Transfer-Encoding: chunked"))
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()

    return answer()
