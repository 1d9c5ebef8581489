"""An adapter in a repository of the Hugging Face hub, or of a mirror with the same addresses.

The hub answers with the commit that a revision stands for; the second file is asked for at that commit, so that both
are of one state of the repository. Large files come from other hosts, by redirect, and have their sha256 announced.
"""

import contextlib
import dataclasses
import fnmatch
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import quote

from loraplex_frontend.sources.addresses import AddressRules
from loraplex_frontend.sources.http_files import HttpFiles
from loraplex_frontend.sources.http_url import HttpUrl, parse_http_url
from loraplex_frontend.sources.opened_file import OpenedFile
from loraplex_frontend.sources.source_limits import SourceLimits
from loraplex_frontend.sources.source_uri import SourceUri

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r'"?([0-9a-f]{64})"?')
_DEFAULT_REVISION: Final = "main"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Where the hub is."""

    endpoint: str = "https://huggingface.co"
    token: str = dataclasses.field(default="", repr=False)
    """Sent to the endpoint alone, never along a redirect to another host."""
    redirect_hosts: tuple[str, ...] = ("*.huggingface.co", "*.hf.co")
    """Patterns of hosts that serve its large files."""


class HubFolder:
    """One repository at one commit."""

    def __init__(
        self, uri: SourceUri, *, hub: HubSettings, rules: AddressRules, tls: ssl.SSLContext, limits: SourceLimits
    ) -> None:
        self._uri = uri
        self._hub = hub
        self._endpoint = parse_http_url(hub.endpoint)
        self._revision = uri.revision or _DEFAULT_REVISION
        self._sha256 = ""
        self._files = HttpFiles(
            rules=rules, tls=tls, limits=limits, may_follow=self._may_follow, headers_for=self._credentials_for
        )

    @contextlib.asynccontextmanager
    async def open(self, file_name: str) -> AsyncIterator[OpenedFile]:
        self._sha256 = ""
        async with self._files.open(self._url(file_name), file_name, self._note) as file:
            yield dataclasses.replace(file, sha256=self._sha256)

    def _url(self, file_name: str) -> HttpUrl:
        repository, *folder = self._uri.path
        revision = quote(self._revision, safe="")
        names = [self._uri.authority, repository, "resolve", revision, *(quote(name, safe="") for name in folder)]
        base = self._endpoint.target.rstrip("/")
        return dataclasses.replace(self._endpoint, target="/".join([base, *names, file_name]))

    def _note(self, url: HttpUrl, headers: Mapping[str, str]) -> None:
        if url.origin != self._endpoint.origin:
            return
        commit = headers.get("x-repo-commit", "")
        if _COMMIT.fullmatch(commit):
            self._revision = commit
        announced = _SHA256.fullmatch(headers.get("x-linked-etag", ""))
        if announced:
            self._sha256 = announced[1]

    def _may_follow(self, url: HttpUrl) -> bool:
        if url.origin == self._endpoint.origin:
            return True
        return any(fnmatch.fnmatchcase(url.host, pattern.lower()) for pattern in self._hub.redirect_hosts)

    def _credentials_for(self, url: HttpUrl) -> Mapping[str, str]:
        if not self._hub.token or url.origin != self._endpoint.origin:
            return {}
        return {"Authorization": f"Bearer {self._hub.token}"}
