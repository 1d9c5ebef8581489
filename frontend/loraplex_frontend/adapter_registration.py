"""Stores a version and points a name at it, and the reverse, so that neither undoes the other."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2
from loraplex_adapters.ingest import IngestReport
from loraplex_contract import status
from loraplex_contract.errors import (
    Aborted,
    Cancelled,
    FailedPrecondition,
    Internal,
    LoraplexError,
    PermissionDenied,
)
from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.adapter_order import VersionOrder
from loraplex_frontend.adapter_origins import AdapterOrigins
from loraplex_frontend.adapter_report import report_json, report_pb, report_summary
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.request import AdapterPart, AdapterSource
from loraplex_frontend.source_cache import SourceCache
from loraplex_frontend.sources.source_uri import is_remote
from loraplex_frontend.store_sweeper import StoreSweeper

SOURCE_NAME_PREFIX: Final = "uri-"
"""Names of adapters that requests brought by uri. Reserved: RegisterAdapter refuses them."""
_DIGEST_CHARS: Final = 16
_MAX_CACHED_SOURCES: Final = 256
_COMMIT_ATTEMPTS: Final = 40
_RETRY_S: Final = 0.05
_LAST_WORD_S: Final = 2.0
Prepare = Callable[[], Awaitable[registry_pb2.CommitVersionRequest]]


class AdapterRegistration:
    """The one place that writes to the store and to the registry.

    Args:
        allow_request_uri: whether requests may bring adapters by uri.
    """

    def __init__(
        self,
        *,
        ingest: AdapterIngest,
        origins: AdapterOrigins,
        registry: RegistryClient,
        sweeper: StoreSweeper,
        allow_request_uri: bool,
    ) -> None:
        self._ingest = ingest
        self._origins = origins
        self._registry = registry
        self._sweeper = sweeper
        self._allow_request_uri = allow_request_uri
        self._sources = SourceCache(_MAX_CACHED_SOURCES)
        self._flights: dict[tuple[str, Path], asyncio.Future[AdapterPart | None]] = {}

    async def register(self, order: VersionOrder) -> registry_pb2.RegistryEntry:
        """Fetches, ingests and commits; what it has come to is seen in lists and watches meanwhile.

        Raises:
            LoraplexError: what the source, ingest or the registry refuses.
        """
        self._origins.check(order.origin)
        attempt = _Attempt(self._registry, order)
        done = await attempt.tell(adapter_pb2.ADAPTER_STATE_PENDING)
        if done is not None:
            return done
        async with attempt.failures():
            if self._origins.is_fetched(order.origin):
                await attempt.tell(adapter_pb2.ADAPTER_STATE_FETCHING)
            async with self._origins.folder(order.origin, order.tenant) as folder:
                entry = await self._store_and_commit(attempt, lambda: self._prepare(order, folder))
            await self._origins.consume(order.origin, order.tenant)
        return entry

    async def _prepare(self, order: VersionOrder, folder: Path) -> registry_pb2.CommitVersionRequest:
        return _commit_of(self._ingest, await self._ingest.ingest(folder, expected_digest=order.expected_digest))

    async def _store_and_commit(self, attempt: "_Attempt", prepare: Prepare) -> registry_pb2.RegistryEntry:
        """Once more whenever the same bytes were deleted meanwhile."""
        for number in range(1, _COMMIT_ATTEMPTS + 1):
            await attempt.tell(adapter_pb2.ADAPTER_STATE_VALIDATING)
            prepared = await prepare()
            try:
                return await self._registry.commit(attempt.commit_of(prepared))
            except Aborted as error:
                if error.reason != "STORE_CHANGED" or number == _COMMIT_ATTEMPTS:
                    raise
            await asyncio.sleep(_RETRY_S)
        raise AssertionError("the last attempt returns or raises")

    async def validate(self, order: VersionOrder) -> adapter_pb2.AdapterVersion:
        """The version as ``register`` would make it, with nothing stored and nothing said."""
        self._origins.check(order.origin)
        async with self._origins.folder(order.origin, order.tenant) as folder:
            report = await self._ingest.ingest(folder, validate_only=True, expected_digest=order.expected_digest)
        return adapter_pb2.AdapterVersion(digest=report.spec.digest, report=report_pb(report))

    async def remove(
        self, request: registry_pb2.RemoveEntryRequest, time_left_s: float | None
    ) -> registry_pb2.RegistryEntry:
        """Removes the name, then the bytes of versions that nothing points at any more."""
        response = await self._registry.remove(request, time_left_s)
        if response.unreferenced_digests:
            await self._sweeper.delete(response.unreferenced_digests)
        return response.entry

    async def adapter_of(self, tenant: str, source: AdapterSource) -> AdapterPart:
        """Ingests on first use; many requests for one folder at once cause one ingest.

        Raises:
            FailedPrecondition: off, or not below an allowed root (SOURCE_NOT_ALLOWED).
        """
        if not self._allow_request_uri:
            message = "adapter.uri: this server takes no adapters by uri: register it, then use its name"
            raise FailedPrecondition(message, reason="SOURCE_NOT_ALLOWED")
        if is_remote(source.uri):
            message = "adapter.uri: a request may bring folders of the server alone: register it, then use its name"
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

        async def prepare() -> registry_pb2.CommitVersionRequest:
            prepared = self._sources.get(folder)
            if prepared is None or not self._ingest.has(prepared.digest):
                mark = self._sources.mark_of(folder)
                prepared = _commit_of(self._ingest, await self._ingest.ingest(folder))
                self._sources.put(folder, mark, prepared)
            return prepared

        digest = (await prepare()).digest
        name = SOURCE_NAME_PREFIX + digest[:_DIGEST_CHARS]
        attempt = _Attempt(self._registry, None, tenant=tenant, name=name)
        entry = await self._store_and_commit(attempt, prepare)
        return AdapterPart(name=entry.name, version=entry.version.digest, weight=1.0)


class _Attempt:
    """One registration as the registry sees it.

    Args:
        order: None for an adapter that a request brought, whose name is the server's own.
    """

    def __init__(
        self, registry: RegistryClient, order: VersionOrder | None, *, tenant: str = "", name: str = ""
    ) -> None:
        self._registry = registry
        self._order = order
        self._tenant = order.tenant if order else tenant
        self._name = order.name if order else name
        self._attempt_id = uuid.uuid4().hex
        self._store_sequence = 0

    async def tell(self, state: Any, error: LoraplexError | None = None) -> registry_pb2.RegistryEntry | None:
        """The entry, if the same request was carried out before."""
        request = registry_pb2.BeginRegistrationRequest(
            tenant=self._tenant,
            name=self._name,
            attempt_id=self._attempt_id,
            state=state,
            identity=self._order.identity if self._order else None,
            error=None if error is None else status.error_to_pb(error),
        )
        response = await self._registry.begin(request)
        self._store_sequence = response.store_sequence
        return response.done if response.HasField("done") else None

    @contextlib.asynccontextmanager
    async def failures(self) -> AsyncIterator[None]:
        """Whatever ends the attempt is told to those who watch it."""
        try:
            yield
        except LoraplexError as error:
            await self._tell_failure(error)
            raise
        except asyncio.CancelledError:
            await self._tell_failure(Cancelled("the caller gave up, or ran out of time; register it again"))
            raise
        except Exception:
            await self._tell_failure(Internal("internal error: the operator's log has it"))
            raise

    async def _tell_failure(self, error: LoraplexError) -> None:
        """The first error is the one to be reported, whatever comes of this."""
        with contextlib.suppress(LoraplexError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                await self.tell(adapter_pb2.ADAPTER_STATE_FAILED, error)

    def commit_of(self, prepared: registry_pb2.CommitVersionRequest) -> registry_pb2.CommitVersionRequest:
        request = registry_pb2.CommitVersionRequest(tenant=self._tenant, name=self._name, attempt_id=self._attempt_id)
        request.store_sequence = self._store_sequence
        request.MergeFrom(prepared)
        order = self._order
        if order is not None:
            request.allow_update = order.allow_update
            request.must_exist = order.must_exist
            request.expected_revision = order.expected_revision
            request.update_mask.paths.extend(sorted(order.fields or ()))
            request.labels.update(order.labels)
            request.description = order.description
            if order.expire_time is not None:
                request.expire_time.CopyFrom(order.expire_time)
            if order.identity is not None:
                request.identity.CopyFrom(order.identity)
        return request


def _commit_of(ingest: AdapterIngest, report: IngestReport) -> registry_pb2.CommitVersionRequest:
    """All of a commit that the artifact decides."""
    described = report_pb(report)
    return registry_pb2.CommitVersionRequest(
        digest=report.spec.digest,
        num_bytes=report.spec.num_bytes,
        num_parameters=ingest.num_parameters(report),
        report_json=report_json(described),
        report_summary=report_summary(described),
    )
