"""Adapters that lie elsewhere, as folders on this machine for as long as they are needed."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from loraplex_contract.errors import Unsupported
from loraplex_frontend.sources import source_errors
from loraplex_frontend.sources.addresses import AddressRules
from loraplex_frontend.sources.allow_list import AllowList
from loraplex_frontend.sources.fetch_folders import FetchFolder, sweep_fetch_folders
from loraplex_frontend.sources.file_copy import FileCopy
from loraplex_frontend.sources.http_url import parse_http_url
from loraplex_frontend.sources.opened_file import SourceFolder
from loraplex_frontend.sources.source_limits import SourceLimits
from loraplex_frontend.sources.source_uri import HF, HTTP, OBJECT_STORES, SourceUri, parse_source_uri

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_EXTRA: Final = "loraplex[sources]"
Connect = Callable[[SourceUri], SourceFolder]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """What the operator allows, and where things are."""

    allowed: AllowList
    private_hosts: frozenset[str] = frozenset()
    """Hosts that may be loopback or private addresses."""
    max_fetches: int = 4
    max_file_bytes: Mapping[str, int]
    """By file name; the files are fetched in this order."""
    limits: SourceLimits = dataclasses.field(default_factory=SourceLimits)
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str = dataclasses.field(default="", repr=False)
    hf_redirect_hosts: tuple[str, ...] = ()
    s3_endpoint: str = ""
    gs_endpoint: str = ""
    az_endpoint: str = ""


class RemoteSources:
    """Use from one event loop. Nothing that is fetched goes into the store but through ingest.

    Raises:
        Unsupported: the operator allows a source whose package is not installed (FEATURE_DISABLED).
    """

    def __init__(self, root: Path, settings: RemoteSettings) -> None:
        self._settings = settings
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._connects = _connects(settings, self._is_private_allowed)
        self._num_fetches: collections.Counter[str] = collections.Counter()
        """By tenant."""
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="fetch")
        sweep_fetch_folders(root)

    def close(self) -> None:
        """Waits until the folders of ended fetches are gone."""
        self._threads.shutdown(wait=True)

    def check(self, uri: str) -> SourceUri:
        """
        Raises:
            InvalidArgument: no uri that is understood (SOURCE_INVALID).
            PermissionDenied: the operator does not allow it (SOURCE_NOT_ALLOWED).
        """
        source = parse_source_uri(uri)
        self._settings.allowed.check(source)
        return source

    @contextlib.asynccontextmanager
    async def fetched(self, uri: str, tenant: str) -> AsyncIterator[Path]:
        """A private folder with the adapter's files, which goes when the context ends.

        Raises:
            LoraplexError: as ``check``, and what the source does: SOURCE_NOT_FOUND, SOURCE_DENIED, SOURCE_FORBIDDEN,
                SOURCE_TIMEOUT, SOURCE_BROKEN, ADAPTER_TOO_LARGE; FETCHES_FULL if too many are under way.
        """
        source = self.check(uri)
        with self._counted(tenant):
            folder = await self._run(lambda: FetchFolder(self._root))
            try:
                await self._fetch(source, folder.path)
                yield folder.path
            finally:
                # Not awaited: a call that ends early may not wait for anything any more.
                self._threads.submit(folder.remove)

    async def sweep(self) -> int:
        """Removes what processes that died left behind."""
        return await self._run(lambda: sweep_fetch_folders(self._root))

    @contextlib.contextmanager
    def _counted(self, tenant: str) -> Any:
        """No tenant has all places, or a source that hangs would keep the others out."""
        most = self._settings.max_fetches
        if self._num_fetches.total() >= most or self._num_fetches[tenant] >= max(1, most - 1):
            raise source_errors.no_room(f"{self._num_fetches.total()} adapters are being fetched, of {most} at once")
        self._num_fetches[tenant] += 1
        try:
            yield
        finally:
            self._num_fetches[tenant] -= 1
            self._num_fetches += collections.Counter()  # drops the tenants at zero

    async def _fetch(self, source: SourceUri, folder: Path) -> None:
        limits = self._settings.limits
        try:
            async with asyncio.timeout(limits.total_s):
                remote = self._connects[source.scheme](source)
                for name, max_bytes in self._settings.max_file_bytes.items():
                    copy = FileCopy(folder / name, run=self._run, max_bytes=max_bytes, limits=limits)
                    async with remote.open(name) as file:
                        sha256 = await copy.take(file)
                    _log.info("adapter file fetched", uri=source.text, file=name, sha256=sha256)
        except TimeoutError:
            raise source_errors.too_slow(f"was not done after {limits.total_s:g} s") from None

    def _is_private_allowed(self, host: str) -> bool:
        """An address in the allow-list is meant; a name there is not, since others may decide what it stands for."""
        is_literal = ":" in host or host.replace(".", "").isdigit()
        return host in self._settings.private_hosts or (is_literal and self._settings.allowed.names_host(host))

    async def _run(self, work: Callable[[], _T]) -> _T:
        """Off the event loop. Who gives up waits for the thread first: nothing is written to a closed file."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise


def _connects(settings: RemoteSettings, is_private_allowed: Callable[[str], bool]) -> dict[str, Connect]:
    """Imports only what the operator allows."""
    schemes = settings.allowed.schemes
    connects: dict[str, Connect] = {}
    if schemes & {HF, *HTTP}:
        connects |= _web_connects(settings, is_private_allowed)
    if schemes & set(OBJECT_STORES):
        connects |= _object_connects(settings)
    return connects


def _web_connects(settings: RemoteSettings, is_private_allowed: Callable[[str], bool]) -> dict[str, Connect]:
    try:
        from loraplex_frontend.sources.checked_backend import tls_context
        from loraplex_frontend.sources.http_folder import HttpFolder
        from loraplex_frontend.sources.hub_folder import HubFolder, HubSettings
    except ModuleNotFoundError as error:
        raise _missing("hf://, http:// and https://", error) from None
    hub = HubSettings(endpoint=settings.hf_endpoint, token=settings.hf_token, redirect_hosts=settings.hf_redirect_hosts)
    limits, tls = settings.limits, tls_context()
    endpoint = parse_http_url(settings.hf_endpoint).host
    hub_rules = AddressRules(lambda host: host == endpoint or is_private_allowed(host))
    web_rules = AddressRules(is_private_allowed)

    def web(uri: SourceUri) -> SourceFolder:
        return HttpFolder(uri, allowed=settings.allowed, rules=web_rules, tls=tls, limits=limits)

    def repository(uri: SourceUri) -> SourceFolder:
        return HubFolder(uri, hub=hub, rules=hub_rules, tls=tls, limits=limits)

    return {HF: repository, **dict.fromkeys(HTTP, web)}


def _object_connects(settings: RemoteSettings) -> dict[str, Connect]:
    try:
        from loraplex_frontend.sources.object_folder import ObjectFolder, ObjectStoreSettings
    except ModuleNotFoundError as error:
        raise _missing("s3://, gs:// and az://", error) from None
    endpoints = ObjectStoreSettings(
        s3_endpoint=settings.s3_endpoint, gs_endpoint=settings.gs_endpoint, az_endpoint=settings.az_endpoint
    )

    def connect(uri: SourceUri) -> SourceFolder:
        return ObjectFolder(uri, settings=endpoints, limits=settings.limits)

    return dict.fromkeys(OBJECT_STORES, connect)


def _missing(schemes: str, error: ModuleNotFoundError) -> Unsupported:
    message = f"adapter_sources: {schemes} need the package {error.name}, which is not installed: install {_EXTRA}"
    return Unsupported(message, reason="FEATURE_DISABLED", metadata={"package": error.name or "", "extra": _EXTRA})
