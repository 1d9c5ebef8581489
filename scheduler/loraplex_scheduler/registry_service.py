"""RegistryService: what frontends relay of AdapterService and ClusterService."""

import dataclasses
from typing import Any, Final

from google.protobuf import duration_pb2

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2, registry_pb2_grpc
from loraplex_contract import status
from loraplex_contract.errors import NotFound, ResourceExhausted
from loraplex_contract.ids import is_adapter_name
from loraplex_scheduler import registry_pages
from loraplex_scheduler.adapters import Adapters
from loraplex_scheduler.core.event import UnregisterMode
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.frontend_convert import summary_to_pb
from loraplex_scheduler.registrations import Progress, Registration
from loraplex_scheduler.registry_convert import (
    STATES,
    change_from_pb,
    entry_to_pb,
    identity_from_pb,
    new_version_from_pb,
    violation,
    worker_to_pb,
)
from loraplex_scheduler.registry_entry import EntryState, RegistryEntry
from loraplex_scheduler.registry_garbage import CLAIM_TTL_S

MAX_WATCHES: Final = 256
WATCH_BATCH: Final = 200
"""Entries of one message: lists have no reports, so this stays far below what gRPC carries."""
QUIET_S: Final = 10.0
"""A watch says at least so often up to which revision it has come."""


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, adapters: Adapters, dispatcher: Dispatcher, *, term: int, quiet_s: float = QUIET_S) -> None:
        self._adapters = adapters
        self._dispatcher = dispatcher
        self._term = term
        self._quiet_s = quiet_s
        self._num_watches = 0

    async def BeginRegistration(
        self, request: registry_pb2.BeginRegistrationRequest, context: Any
    ) -> registry_pb2.BeginRegistrationResponse:
        states = {STATES[state]: state for state in Progress}
        if not is_adapter_name(request.name) or request.state not in states or not request.attempt_id:
            raise violation("a registration needs a name, an attempt and a state before READY")
        sequence, entry = await self._adapters.report(
            request.tenant,
            request.name,
            attempt_id=request.attempt_id,
            state=states[request.state],
            error=status.error_from_pb(request.error) if request.HasField("error") else None,
            identity=identity_from_pb(request),
        )
        done = None if entry is None else entry_to_pb(entry, self._dispatcher.statistics())
        return registry_pb2.BeginRegistrationResponse(store_sequence=sequence, done=done)

    async def CommitVersion(
        self, request: registry_pb2.CommitVersionRequest, context: Any
    ) -> registry_pb2.CommitVersionResponse:
        entry = await self._adapters.commit(new_version_from_pb(request))
        return registry_pb2.CommitVersionResponse(entry=entry_to_pb(entry, self._dispatcher.statistics()))

    async def UpdateEntry(
        self, request: registry_pb2.UpdateEntryRequest, context: Any
    ) -> registry_pb2.UpdateEntryResponse:
        entry = await self._adapters.change(change_from_pb(request))
        return registry_pb2.UpdateEntryResponse(entry=entry_to_pb(entry, self._dispatcher.statistics()))

    async def ReadEntry(self, request: registry_pb2.ReadEntryRequest, context: Any) -> registry_pb2.ReadEntryResponse:
        entry: RegistryEntry | Registration
        try:
            entry = await self._adapters.registry.get(request.tenant, request.name)
        except NotFound:
            registration = self._adapters.registrations.get(request.tenant, request.name)
            if registration is None:
                raise
            entry = registration
        return registry_pb2.ReadEntryResponse(entry=entry_to_pb(entry, self._dispatcher.statistics()))

    async def ListEntries(
        self, request: registry_pb2.ListEntriesRequest, context: Any
    ) -> registry_pb2.ListEntriesResponse:
        revision = self._adapters.history.revision
        entries, token = await self._page(request)
        statistics = self._dispatcher.statistics()
        described = [entry_to_pb(entry, statistics) for entry in entries]
        return registry_pb2.ListEntriesResponse(entries=described, next_page_token=token, revision=revision)

    async def _page(self, request: registry_pb2.ListEntriesRequest) -> tuple[list[RegistryEntry | Registration], str]:
        """What is on disk and what is under way, in one order."""
        size = registry_pages.checked_page_size(request.page_size)
        wanted = [state for state in EntryState if STATES[state] in request.states or not request.states]
        progress = [state for state in Progress if STATES[state] in request.states or not request.states]
        under_way = self._adapters.registrations.between(
            request.tenant,
            after=registry_pages.decode_token(request.page_token),
            name_prefix=request.name_prefix,
            states=progress,
            labels=request.labels,
        )
        found: dict[str, RegistryEntry | Registration] = {entry.name: entry for entry in under_way[: size + 1]}
        is_more = False
        if wanted:
            page = await self._adapters.registry.list_page(
                request.tenant,
                page_size=size,
                page_token=request.page_token,
                name_prefix=request.name_prefix,
                states=wanted if request.states else [],
                labels=dict(request.labels),
            )
            found |= {entry.name: entry for entry in page.entries}
            is_more = bool(page.next_page_token)
        names = sorted(found)
        is_more = is_more or len(names) > size
        names = names[:size]
        return [found[name] for name in names], registry_pages.encode_token(names[-1]) if is_more else ""

    async def RemoveEntry(
        self, request: registry_pb2.RemoveEntryRequest, context: Any
    ) -> registry_pb2.RemoveEntryResponse:
        is_cancel = request.mode == adapter_pb2.UNREGISTER_MODE_CANCEL
        identity = identity_from_pb(request)
        try:
            entry, digests = await self._adapters.remove(
                request.tenant,
                request.name,
                UnregisterMode.CANCEL if is_cancel else UnregisterMode.DRAIN,
                fail_if_in_use=request.mode == adapter_pb2.UNREGISTER_MODE_FAIL_IF_IN_USE,
                expected_revision=request.expected_revision,
                identity=identity,
            )
        except NotFound:
            if await self._adapters.registry.is_done(request.tenant, identity):
                return registry_pb2.RemoveEntryResponse(entry=_gone(request))
            registration = await self._adapters.forget_registration(request.tenant, request.name)
            return registry_pb2.RemoveEntryResponse(entry=_deleted(registration))
        return registry_pb2.RemoveEntryResponse(entry=_deleted(entry), unreferenced_digests=digests)

    async def ClaimGarbage(
        self, request: registry_pb2.ClaimGarbageRequest, context: Any
    ) -> registry_pb2.ClaimGarbageResponse:
        claim = await self._adapters.registry.claim_garbage(request.digests)
        ttl = duration_pb2.Duration()
        ttl.FromNanoseconds(int(CLAIM_TTL_S * 1e9))
        return registry_pb2.ClaimGarbageResponse(digests=claim.digests, claim=claim.number, ttl=ttl)

    async def ConfirmDeleted(
        self, request: registry_pb2.ConfirmDeletedRequest, context: Any
    ) -> registry_pb2.ConfirmDeletedResponse:
        await self._adapters.registry.confirm_deleted(request.claim, request.digests)
        return registry_pb2.ConfirmDeletedResponse()

    async def WatchEntries(self, request: registry_pb2.WatchEntriesRequest, context: Any) -> None:  # type: ignore[override]
        if self._num_watches >= MAX_WATCHES:
            message = f"{MAX_WATCHES} watches are open; end one, or poll ListAdapters"
            raise ResourceExhausted(message, reason="WATCHES_FULL", retry_delay_s=5.0)
        self._num_watches += 1
        try:
            revision = request.from_revision
            if revision == 0:
                revision = await self._send_list(request.tenant, context)
            else:
                self._adapters.history.after(revision, 1)
                await context.write(registry_pb2.WatchEntriesResponse(revision=revision, list_complete=True))
            await self._send_changes(request.tenant, revision, context)
        finally:
            self._num_watches -= 1

    async def _send_list(self, tenant: str, context: Any) -> int:
        revision, entries = await self._adapters.snapshot(tenant)
        for start in range(0, len(entries), WATCH_BATCH):
            changed = [entry_to_pb(entry) for entry in entries[start : start + WATCH_BATCH]]
            await context.write(registry_pb2.WatchEntriesResponse(revision=revision, changed=changed))
        await context.write(registry_pb2.WatchEntriesResponse(revision=revision, list_complete=True))
        return revision

    async def _send_changes(self, tenant: str, revision: int, context: Any) -> None:
        history = self._adapters.history
        while True:
            await history.wait(revision, self._quiet_s)
            changes = history.after(revision, WATCH_BATCH)
            changed = [entry_to_pb(entry) for entry in changes if entry.tenant == tenant]
            is_quiet = not changes
            revision = changes[-1].revision if changes else revision
            if changed or is_quiet:
                await context.write(registry_pb2.WatchEntriesResponse(revision=revision, changed=changed))

    async def ReadCluster(
        self, request: registry_pb2.ReadClusterRequest, context: Any
    ) -> registry_pb2.ReadClusterResponse:
        statistics = self._dispatcher.statistics()
        workers = [worker_to_pb(worker) for worker in statistics.workers]
        return registry_pb2.ReadClusterResponse(summary=summary_to_pb(statistics), workers=workers, epoch=self._term)


def _deleted(entry: RegistryEntry | Registration) -> registry_pb2.RegistryEntry:
    if isinstance(entry, RegistryEntry):
        return entry_to_pb(dataclasses.replace(entry, state=EntryState.DELETED))
    pb = entry_to_pb(entry)
    pb.state = adapter_pb2.ADAPTER_STATE_DELETED
    return pb


def _gone(request: registry_pb2.RemoveEntryRequest) -> registry_pb2.RegistryEntry:
    """Nothing else is kept of it."""
    state = adapter_pb2.ADAPTER_STATE_DELETED
    return registry_pb2.RegistryEntry(tenant=request.tenant, name=request.name, state=state)
