"""httpcore's way to the network, through our address rules."""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

from loraplex_frontend.sources.addresses import AddressRules


def tls_context() -> ssl.SSLContext:
    """Verifies against the system's roots, or the file that SSL_CERT_FILE names."""
    return httpcore2.default_ssl_context()


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves, checks every address and connects to a checked one; TLS still verifies the host's name."""

    def __init__(self, rules: AddressRules) -> None:
        self._rules = rules
        self._plain: Any = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception | None = None
        async with asyncio.timeout(timeout):
            for address in await self._rules.resolve(host, port):
                try:
                    connected = self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
                    stream: httpcore2.AsyncNetworkStream = await connected
                    return stream
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    failure = error
        assert failure is not None, "there is at least one address"
        raise failure
