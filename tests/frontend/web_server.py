"""A web server that misbehaves on order: raw HTTP/1.1 over loopback, one answer a connection."""

import asyncio
import contextlib
import dataclasses
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["WebServer"]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=tls)
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


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a server is, and the file that makes clients believe it."""

    server: ssl.SSLContext
    certificate: Path


def self_signed(folder: Path, host: str) -> Identity:
    """For this host alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return Identity(context, certificate)


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
