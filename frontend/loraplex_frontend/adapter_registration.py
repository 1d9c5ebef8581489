"""Stores a version and points a name at it, and the reverse, so that neither undoes the other."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2
from loraplex_adapters.ingest import IngestReport
from loraplex_contract.errors import FailedPrecondition, LoraplexError, PermissionDenied
from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.adapter_report import report_json, report_pb
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.request import AdapterPart, AdapterSource
from loraplex_frontend.source_cache import SourceCache

SOURCE_NAME_PREFIX: Final = "uri-"
"""Names of adapters that requests brought by uri. Reserved: RegisterAdapter refuses them."""
_DIGEST_CHARS: Final = 16
_MAX_CACHED_SOURCES: Final = 256


class AdapterRegistration:
    """The one place that writes to the store and to the registry.

    Args:
        allow_request_uri: whether requests may bring adapters by uri.
    """

    def __init__(self, *, ingest: AdapterIngest, registry: RegistryClient, allow_request_uri: bool) -> None:
        self._ingest = ingest
        self._registry = registry
        self._allow_request_uri = allow_request_uri
        self._store_lock = asyncio.Lock()
        """Held from ingest to commit, and while bytes are deleted."""
        self._num_removing = 0
        self._recommitted: set[str] = set()
        """Digests committed while a removal was under way: these are in use again."""
        self._sources = SourceCache(_MAX_CACHED_SOURCES)
        self._flights: dict[tuple[str, Path], asyncio.Future[AdapterPart | None]] = {}

    async def register(
        self,
        *,
        tenant: str,
        name: str,
        folder: Path,
        allow_update: bool,
        expected_digest: str,
        labels: Mapping[str, str],
    ) -> registry_pb2.RegistryEntry:
        """Ingests the folder and commits the version.

        Raises:
            RequestRejected: what ingest or the registry refuses.
        """
        async with self._store_lock:
            report = await self._ingest.ingest(folder, expected_digest=expected_digest)
            return await self._commit(_commit_of(self._ingest, report), tenant, name, allow_update, labels)

    async def _commit(
        self,
        prepared: registry_pb2.CommitVersionRequest,
        tenant: str,
        name: str,
        allow_update: bool,
        labels: Mapping[str, str],
    ) -> registry_pb2.RegistryEntry:
        request = registry_pb2.CommitVersionRequest(tenant=tenant, name=name, allow_update=allow_update, labels=labels)
        request.MergeFrom(prepared)
        if self._num_removing:
            self._recommitted.add(prepared.digest)
        return await self._registry.commit(request)

    async def validate(self, name: str, folder: Path, expected_digest: str) -> adapter_pb2.Adapter:
        """As ``register`` would answer, with nothing stored."""
        report = await self._ingest.ingest(folder, validate_only=True, expected_digest=expected_digest)
        version = adapter_pb2.AdapterVersion(digest=report.spec.digest, report=report_pb(report))
        return adapter_pb2.Adapter(name=name, state=adapter_pb2.ADAPTER_STATE_READY, version=version)

    async def remove(
        self, request: registry_pb2.RemoveEntryRequest, time_left_s: float | None
    ) -> registry_pb2.RegistryEntry:
        """Removes the name, then the bytes of versions that nothing points at any more."""
        self._num_removing += 1
        try:
            response = await self._registry.remove(request, time_left_s)
            async with self._store_lock:
                for digest in response.unreferenced_digests:
                    if digest not in self._recommitted:
                        await self._ingest.delete(digest)
        finally:
            self._num_removing -= 1
            if not self._num_removing:
                self._recommitted.clear()
        return response.entry

    async def adapter_of(self, tenant: str, source: AdapterSource) -> AdapterPart:
        """Ingests on first use; many requests for one folder at once cause one ingest.

        Raises:
            FailedPrecondition: off, or not below an allowed root (SOURCE_NOT_ALLOWED).
        """
        if not self._allow_request_uri:
            message = "adapter.uri: this server takes no adapters by uri: register it, then use its name"
            raise FailedPrecondition(message, reason="SOURCE_NOT_ALLOWED")
        try:
            folder = self._ingest.folder_of(source.uri)
        except PermissionDenied as error:
            raise FailedPrecondition(f"adapter.{error.message}", reason=error.reason) from None
        part = await self._single_flight(tenant, folder)
        return AdapterPart(name=part.name, version=part.version, weight=source.scale)

    async def _single_flight(self, tenant: str, folder: Path) -> AdapterPart:
        """Those who come while one is at work share its result or its refusal."""
        key = (tenant, folder)
        while (flight := self._flights.get(key)) is not None:
            # None: the one at work was cancelled, so somebody else has to do it.
            if (part := await asyncio.shield(flight)) is not None:
                return part
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            part = await self._commit_source(tenant, folder)
            flight.set_result(part)
            return part
        except LoraplexError as error:
            flight.set_exception(error)
            # Looked at, so that asyncio does not report it when nobody else waited.
            flight.exception()
            raise
        finally:
            del self._flights[key]
            if not flight.done():
                flight.set_result(None)

    async def _commit_source(self, tenant: str, folder: Path) -> AdapterPart:
        """Reads the folder only if its files have changed or its bytes have left the store."""
        async with self._store_lock:
            prepared = self._sources.get(folder)
            if prepared is None or not self._ingest.has(prepared.digest):
                mark = self._sources.mark_of(folder)
                prepared = _commit_of(self._ingest, await self._ingest.ingest(folder))
                self._sources.put(folder, mark, prepared)
            name = SOURCE_NAME_PREFIX + prepared.digest[:_DIGEST_CHARS]
            await self._commit(prepared, tenant, name, allow_update=False, labels={})
        return AdapterPart(name=name, version=prepared.digest, weight=1.0)


def _commit_of(ingest: AdapterIngest, report: IngestReport) -> registry_pb2.CommitVersionRequest:
    """All of a commit that the artifact decides."""
    return registry_pb2.CommitVersionRequest(
        digest=report.spec.digest,
        num_bytes=report.spec.num_bytes,
        num_parameters=ingest.num_parameters(report),
        report_json=report_json(report_pb(report)),
    )
