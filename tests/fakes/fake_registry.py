"""RegistryService without a database and without a core, for tests of the frontend."""

import asyncio

from google.protobuf import duration_pb2

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import frontend_link_pb2, registry_pb2, registry_pb2_grpc
from loraplex_contract.errors import AlreadyExists, LoraplexError, NotFound


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Names and versions in a dictionary, with the contract of RegistryService."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], registry_pb2.RegistryEntry] = {}
        self.commits: list[registry_pb2.CommitVersionRequest] = []
        self.garbage: set[str] = set()
        self.states: list[tuple[str, int]] = []
        """What was said of registrations under way."""
        self.error: LoraplexError | None = None
        """Raised by every method while set."""
        self.removing = asyncio.Event()
        self.may_remove = asyncio.Event()
        self.may_remove.set()

    async def CommitVersion(self, request, context):
        self._raise_error()
        self.commits.append(request)
        key = (request.tenant, request.name)
        entry = self.entries.get(key)
        if entry is not None and entry.version.digest != request.digest and not request.allow_update:
            raise AlreadyExists("name: has another version: set allow_update", reason="ADAPTER_EXISTS")
        if entry is None or entry.version.digest != request.digest:
            number = entry.version.number + 1 if entry is not None else 1
            version = registry_pb2.RegistryVersion(
                number=number,
                digest=request.digest,
                num_bytes=request.num_bytes,
                num_parameters=request.num_parameters,
                report_json=request.report_json,
                report_summary=request.report_summary,
            )
            self.entries[key] = registry_pb2.RegistryEntry(
                tenant=request.tenant,
                name=request.name,
                state=adapter_pb2.ADAPTER_STATE_READY,
                version=version,
                labels=request.labels,
                revision=len(self.commits),
            )
        return registry_pb2.CommitVersionResponse(entry=self.entries[key])

    async def BeginRegistration(self, request, context):
        self._raise_error()
        self.states.append((request.name, request.state))
        return registry_pb2.BeginRegistrationResponse()

    async def UpdateEntry(self, request, context):
        self._raise_error()
        entry = self._entry(request.tenant, request.name)
        entry.description = request.description
        return registry_pb2.UpdateEntryResponse(entry=entry)

    async def ClaimGarbage(self, request, context):
        self._raise_error()
        digests = [digest for digest in self.garbage if digest in request.digests or not request.digests]
        self.garbage -= set(digests)
        return registry_pb2.ClaimGarbageResponse(digests=digests, claim=1, ttl=duration_pb2.Duration(seconds=30))

    async def ConfirmDeleted(self, request, context):
        self._raise_error()
        return registry_pb2.ConfirmDeletedResponse()

    async def WatchEntries(self, request, context):  # type: ignore[override]
        self._raise_error()
        entries = [entry for (tenant, _), entry in self.entries.items() if tenant == request.tenant]
        await context.write(registry_pb2.WatchEntriesResponse(revision=7, changed=entries, list_complete=True))

    async def ReadEntry(self, request, context):
        self._raise_error()
        return registry_pb2.ReadEntryResponse(entry=self._entry(request.tenant, request.name))

    async def ListEntries(self, request, context):
        self._raise_error()
        names = sorted(name for tenant, name in self.entries if tenant == request.tenant and name > request.page_token)
        names = [name for name in names if name.startswith(request.name_prefix)]
        size = request.page_size or 50
        page = names[:size]
        return registry_pb2.ListEntriesResponse(
            entries=[self.entries[request.tenant, name] for name in page],
            next_page_token=page[-1] if len(names) > size else "",
        )

    async def RemoveEntry(self, request, context):
        self._raise_error()
        entry = self._entry(request.tenant, request.name)
        del self.entries[request.tenant, request.name]
        digest = entry.version.digest
        self.removing.set()
        await self.may_remove.wait()
        is_used = any(other.version.digest == digest for other in self.entries.values())
        self.garbage |= set() if is_used else {digest}
        return registry_pb2.RemoveEntryResponse(entry=entry, unreferenced_digests=sorted(self.garbage))

    async def ReadCluster(self, request, context):
        self._raise_error()
        worker = registry_pb2.WorkerState(worker_id="w1", device="cpu", num_pages_total=10, num_pages_free=10)
        summary = frontend_link_pb2.ClusterSummary(num_ready_workers=1, num_queued=2, num_running=3)
        return registry_pb2.ReadClusterResponse(summary=summary, workers=[worker], epoch=7)

    def _entry(self, tenant: str, name: str) -> registry_pb2.RegistryEntry:
        entry = self.entries.get((tenant, name))
        if entry is None:
            raise NotFound("name: no such adapter", reason="ADAPTER_NOT_FOUND")
        return entry

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
