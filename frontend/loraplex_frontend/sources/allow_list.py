"""Which places the operator lets adapters be fetched from."""

from collections.abc import Iterable

from loraplex_contract.errors import InvalidArgument, PermissionDenied
from loraplex_frontend.sources.source_uri import SourceUri, parse_source_prefix


class AllowList:
    """Prefixes of uris, compared part by part: ``https://a.example/x`` covers /x/y, and neither /xy nor another host.

    Args:
        prefixes: e.g. ``hf://my-org``, ``s3://bucket/adapters``, ``https://models.example.com``; a bare ``hf://`` is
            every organisation. Empty: nothing is allowed.

    Raises:
        ValueError: an entry is no such prefix.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes = tuple(_prefix_of(text) for text in prefixes)

    @property
    def schemes(self) -> frozenset[str]:
        """Of all entries."""
        return frozenset(prefix.scheme for prefix in self._prefixes)

    def names_host(self, host: str) -> bool:
        """Whether an entry has exactly this host, which for an address says that it is meant."""
        return any(prefix.authority == host for prefix in self._prefixes)

    def covers(self, uri: SourceUri) -> bool:
        return any(_covers(prefix, uri) for prefix in self._prefixes)

    def check(self, uri: SourceUri) -> None:
        """Raises PermissionDenied (SOURCE_NOT_ALLOWED)."""
        if not self.covers(uri):
            message = f"uri: the operator allows no adapters from there ({uri.scheme}); setting adapter_sources"
            raise PermissionDenied(message, reason="SOURCE_NOT_ALLOWED", metadata={"setting": "adapter_sources"})


def _prefix_of(text: str) -> SourceUri:
    try:
        return parse_source_prefix(text)
    except InvalidArgument as error:
        raise ValueError(f"{text!r} is no prefix of adapter uris: {error.message.removeprefix('uri: ')}") from None


def _covers(prefix: SourceUri, uri: SourceUri) -> bool:
    return (
        prefix.scheme == uri.scheme
        and (not prefix.authority or (prefix.authority, prefix.port) == (uri.authority, uri.port))
        and prefix.path == uri.path[: len(prefix.path)]
        and prefix.revision in ("", uri.revision)
    )
