"""One address on the web that is about to be asked, of a source or of a redirect."""

import dataclasses
import re
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from loraplex_contract.errors import InvalidArgument
from loraplex_frontend.sources.source_errors import broken, forbidden
from loraplex_frontend.sources.source_uri import DEFAULT_PORTS, SourceUri, parse_host_and_port, parse_source_uri

_VISIBLE: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]{1,8192}")
"""ASCII without space and backslash."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpUrl:
    scheme: str
    host: str
    """Lower case, without brackets."""
    port: int
    target: str
    """Path and query, as they are sent."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def as_source(self) -> SourceUri:
        """For the allow-list. Raises InvalidArgument for a path that is none there."""
        return parse_source_uri(f"{self.scheme}://{self.host_header}{self.target.partition('?')[0]}")

    def redirected(self, location: str) -> "HttpUrl":
        """
        Raises:
            Unavailable: no address of the web (SOURCE_BROKEN).
            PermissionDenied: from https to http, or with credentials (SOURCE_FORBIDDEN).
        """
        if not _VISIBLE.fullmatch(location):
            raise broken("redirects to what is no address")
        url = parse_http_url(urljoin(f"{self.scheme}://{self.host_header}{self.target}", location))
        if self.scheme == "https" and url.scheme != "https":
            raise forbidden("the source redirects from https to http")
        return url


def parse_http_url(text: str) -> HttpUrl:
    """
    Raises:
        Unavailable: no address of the web (SOURCE_BROKEN).
        PermissionDenied: it has credentials (SOURCE_FORBIDDEN).
    """
    try:
        parts = urlsplit(text)
        if parts.scheme not in DEFAULT_PORTS:
            raise broken("redirects to what is not http or https")
        if "@" in parts.netloc:
            raise forbidden("the source redirects to an address with credentials")
        host, port = parse_host_and_port(parts.scheme, parts.netloc)
    except (ValueError, InvalidArgument):
        raise broken("redirects to what is no address") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpUrl(scheme=parts.scheme, host=host, port=port or DEFAULT_PORTS[parts.scheme], target=target)


def url_of(uri: SourceUri, *more: str) -> HttpUrl:
    """Of an http uri and further segments."""
    target = "".join(f"/{quote(segment, safe='')}" for segment in (*uri.path, *more))
    port = uri.port or DEFAULT_PORTS[uri.scheme]
    return HttpUrl(scheme=uri.scheme, host=uri.authority, port=port, target=target or "/")
