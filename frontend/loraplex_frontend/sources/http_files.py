"""Files over HTTP/1.1 with every redirect checked as if it were the first address."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpcore2

from loraplex_frontend.sources import source_errors
from loraplex_frontend.sources.addresses import AddressRules
from loraplex_frontend.sources.checked_backend import CheckedBackend
from loraplex_frontend.sources.http_url import HttpUrl
from loraplex_frontend.sources.opened_file import OpenedFile
from loraplex_frontend.sources.source_limits import SourceLimits

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
OnAnswer = Callable[[HttpUrl, Mapping[str, str]], None]


class HttpFiles:
    """
    Args:
        tls: made once, since reading the system's roots would hold up the event loop.
        may_follow: whether a redirect may lead to this address.
        headers_for: sent with the request to this address, e.g. credentials for one host alone.
    """

    def __init__(
        self,
        *,
        rules: AddressRules,
        tls: ssl.SSLContext,
        limits: SourceLimits,
        may_follow: Callable[[HttpUrl], bool],
        headers_for: Callable[[HttpUrl], Mapping[str, str]] = lambda url: {},
    ) -> None:
        self._rules = rules
        self._tls = tls
        self._limits = limits
        self._may_follow = may_follow
        self._headers_for = headers_for

    @contextlib.asynccontextmanager
    async def open(self, url: HttpUrl, file_name: str, on_answer: OnAnswer | None = None) -> AsyncIterator[OpenedFile]:
        """
        Args:
            on_answer: is shown the headers of every answer on the way, redirects too.

        Raises:
            LoraplexError: SOURCE_NOT_FOUND, SOURCE_DENIED, SOURCE_FORBIDDEN, SOURCE_NOT_ALLOWED, SOURCE_TIMEOUT,
                SOURCE_BROKEN.
        """
        async with contextlib.AsyncExitStack() as closing:
            with transport_errors():
                backend = CheckedBackend(self._rules)
                pool = httpcore2.AsyncConnectionPool(
                    ssl_context=self._tls,
                    network_backend=backend,
                    max_connections=1,
                    max_keepalive_connections=0,
                )
                await closing.enter_async_context(pool)
                for _ in range(self._limits.max_redirects + 1):
                    hop = await closing.enter_async_context(contextlib.AsyncExitStack())
                    response = await self._ask(pool, url, hop)
                    headers = _headers_of(response)
                    if on_answer is not None:
                        on_answer(url, headers)
                    if response.status not in _REDIRECTS:
                        _check_answer(response.status, headers, file_name)
                        break
                    await hop.aclose()
                    url = self._next(url, headers)
                else:
                    raise source_errors.broken("redirects too often")
            yield OpenedFile(chunks=_chunks(response), num_bytes=_num_bytes(headers))

    async def _ask(self, pool: Any, url: HttpUrl, hop: contextlib.AsyncExitStack) -> Any:
        limits = self._limits
        timeouts = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.read_s, "pool": limits.read_s}
        headers = {
            "Host": url.host_header,
            "Accept": "*/*",
            # What is counted and capped must be what is stored.
            "Accept-Encoding": "identity",
            "User-Agent": "loraplex",
            "Connection": "close",
            **self._headers_for(url),
        }
        async with asyncio.timeout(limits.connect_s + limits.read_s):
            return await hop.enter_async_context(
                pool.stream(
                    b"GET",
                    httpcore2.URL(
                        scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target.encode()
                    ),
                    headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                    extensions={"timeout": timeouts},
                )
            )

    def _next(self, url: HttpUrl, headers: Mapping[str, str]) -> HttpUrl:
        target = url.redirected(headers.get("location", ""))
        if not self._may_follow(target):
            raise source_errors.forbidden("the source redirects to a place that the operator does not allow")
        return target


@contextlib.contextmanager
def transport_errors() -> Any:
    """What the transport raises, as what the caller sees."""
    try:
        yield
    except (httpcore2.TimeoutException, TimeoutError):
        raise source_errors.too_slow("did not answer in time") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
        raise source_errors.broken("cannot be reached, or broke off") from None


async def _chunks(response: Any) -> AsyncIterator[bytes]:
    with transport_errors():
        async with contextlib.aclosing(response.aiter_stream()) as pieces:
            async for piece in pieces:
                yield piece


def _headers_of(response: Any) -> dict[str, str]:
    """Lower-case names; the last of a name counts."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _check_answer(status: int, headers: Mapping[str, str], file_name: str) -> None:
    if status in (404, 410):
        raise source_errors.not_found(file_name)
    if status in (401, 403, 407):
        raise source_errors.denied()
    if status != 200:
        raise source_errors.broken(f"answered with HTTP status {status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise source_errors.broken("sends the file encoded, which was not asked for")


def _num_bytes(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if _DIGITS.fullmatch(text) else None
