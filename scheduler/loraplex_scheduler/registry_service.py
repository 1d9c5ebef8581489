"""RegistryService: what frontends relay of AdapterService and ClusterService."""

from typing import Any, Final

from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2, registry_pb2_grpc
from loraplex_contract.errors import InvalidArgument
from loraplex_contract.ids import is_adapter_name, is_digest
from loraplex_scheduler.adapters import Adapters
from loraplex_scheduler.core.event import UnregisterMode
from loraplex_scheduler.core.statistics import CoreStatistics, WorkerStatistics
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.frontend_convert import summary_to_pb
from loraplex_scheduler.registry import EntryState, NewVersion, RegisteredVersion, RegistryEntry

_STATES: Final = {
    EntryState.READY: adapter_pb2.ADAPTER_STATE_READY,
    EntryState.DRAINING: adapter_pb2.ADAPTER_STATE_DRAINING,
}


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, adapters: Adapters, dispatcher: Dispatcher, *, term: int) -> None:
        self._adapters = adapters
        self._dispatcher = dispatcher
        self._term = term

    async def CommitVersion(
        self, request: registry_pb2.CommitVersionRequest, context: Any
    ) -> registry_pb2.CommitVersionResponse:
        if not is_adapter_name(request.name) or not is_digest(request.digest) or not request.num_parameters:
            raise InvalidArgument("a version needs a name, a digest and its size", reason="PROTOCOL_VIOLATION")
        version = NewVersion(
            tenant=request.tenant,
            name=request.name,
            digest=request.digest,
            num_bytes=request.num_bytes,
            num_parameters=request.num_parameters,
            report_json=request.report_json,
            labels=dict(request.labels),
            allow_update=request.allow_update,
        )
        entry = await self._adapters.commit(version)
        return registry_pb2.CommitVersionResponse(entry=self._describe(entry))

    async def ReadEntry(self, request: registry_pb2.ReadEntryRequest, context: Any) -> registry_pb2.ReadEntryResponse:
        entry = await self._adapters.registry.get(request.tenant, request.name)
        return registry_pb2.ReadEntryResponse(entry=self._describe(entry))

    async def ListEntries(
        self, request: registry_pb2.ListEntriesRequest, context: Any
    ) -> registry_pb2.ListEntriesResponse:
        wanted = [state for state, pb in _STATES.items() if pb in request.states]
        if request.states and not wanted:
            return registry_pb2.ListEntriesResponse()
        page = await self._adapters.registry.list_page(
            request.tenant,
            page_size=request.page_size,
            page_token=request.page_token,
            name_prefix=request.name_prefix,
            states=wanted,
        )
        entries = [self._describe(entry) for entry in page.entries]
        return registry_pb2.ListEntriesResponse(entries=entries, next_page_token=page.next_page_token)

    async def RemoveEntry(
        self, request: registry_pb2.RemoveEntryRequest, context: Any
    ) -> registry_pb2.RemoveEntryResponse:
        is_cancel = request.mode == adapter_pb2.UNREGISTER_MODE_CANCEL
        mode = UnregisterMode.CANCEL if is_cancel else UnregisterMode.DRAIN
        entry, digests = await self._adapters.remove(request.tenant, request.name, mode)
        pb = self._describe(entry)
        pb.state = adapter_pb2.ADAPTER_STATE_DELETED
        return registry_pb2.RemoveEntryResponse(entry=pb, unreferenced_digests=digests)

    async def ReadCluster(
        self, request: registry_pb2.ReadClusterRequest, context: Any
    ) -> registry_pb2.ReadClusterResponse:
        statistics = self._dispatcher.statistics()
        workers = [_worker(worker) for worker in statistics.workers]
        return registry_pb2.ReadClusterResponse(summary=summary_to_pb(statistics), workers=workers, epoch=self._term)

    def _describe(self, entry: RegistryEntry) -> registry_pb2.RegistryEntry:
        statistics = self._dispatcher.statistics()
        leases = {a.digest: a.num_leases for worker in statistics.workers for a in worker.adapters}
        older = [_version(version, leases) for version in entry.versions[:-1]]
        return registry_pb2.RegistryEntry(
            tenant=entry.tenant,
            name=entry.name,
            state=_STATES[entry.state],
            version=_version(entry.current, leases),
            older_versions=older,
            labels=dict(entry.labels),
            create_time=_timestamp(entry.created_ns),
            update_time=_timestamp(entry.updated_ns),
            revision=entry.revision,
            residencies=_residencies(entry, statistics),
        )


def _version(version: RegisteredVersion, leases: dict[str, int]) -> registry_pb2.RegistryVersion:
    return registry_pb2.RegistryVersion(
        number=version.number,
        digest=version.digest,
        num_bytes=version.num_bytes,
        num_parameters=version.num_parameters,
        report_json=version.report_json,
        create_time=_timestamp(version.created_ns),
        num_leases=leases.get(version.digest, 0),
    )


def _timestamp(unix_ns: int) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromNanoseconds(unix_ns)
    return timestamp


def _residencies(entry: RegistryEntry, statistics: CoreStatistics) -> list[adapter_pb2.Residency]:
    digests = {version.digest for version in entry.versions}
    return [
        adapter_pb2.Residency(worker_id=worker.worker_id, tier=adapter_pb2.ADAPTER_TIER_DEVICE, digest=adapter.digest)
        for worker in statistics.workers
        for adapter in worker.adapters
        if adapter.digest in digests and adapter.is_on_device
    ]


def _worker(worker: WorkerStatistics) -> registry_pb2.WorkerState:
    adapters = [
        registry_pb2.WorkerAdapter(digest=a.digest, num_pages=a.num_pages, num_leases=a.num_leases)
        for a in worker.adapters
    ]
    return registry_pb2.WorkerState(
        worker_id=worker.worker_id,
        device=worker.device,
        num_pages_total=worker.pages.total,
        num_pages_free=worker.pages.free,
        num_pages_kv=worker.pages.kv,
        num_pages_adapter=worker.pages.adapter,
        num_running_sequences=worker.num_running_sequences,
        adapters=adapters,
        num_steps=worker.counters.num_steps,
        num_mixed_steps=worker.counters.num_mixed_steps,
        max_adapters_in_step=worker.counters.max_adapters_in_step,
        num_output_tokens=worker.counters.num_output_tokens,
    )
