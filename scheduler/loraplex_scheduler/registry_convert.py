"""Between the registry's values and ``loraplex.worker.v1``."""

from collections.abc import Collection
from typing import Any, Final

from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2
from loraplex_contract import status
from loraplex_contract.errors import InvalidArgument
from loraplex_contract.ids import is_adapter_name, is_digest, is_request_id
from loraplex_scheduler.adapters import leases_by_digest
from loraplex_scheduler.core.statistics import CoreStatistics, WorkerStatistics
from loraplex_scheduler.registrations import Progress, Registration
from loraplex_scheduler.registry_entry import (
    FIELDS,
    EntryChange,
    EntryState,
    NewVersion,
    RegisteredVersion,
    RegistryEntry,
    RequestIdentity,
)

STATES: Final[dict[EntryState | Progress, Any]] = {
    state: adapter_pb2.AdapterState.Value(f"ADAPTER_STATE_{state.value}") for state in (*EntryState, *Progress)
}
"""Both kinds of states, which have no name in common."""


def new_version_from_pb(pb: registry_pb2.CommitVersionRequest) -> NewVersion:
    """Raises InvalidArgument (PROTOCOL_VIOLATION)."""
    if not is_adapter_name(pb.name) or not is_digest(pb.digest) or not pb.num_parameters:
        raise violation("a version needs a name, a digest and its size")
    return NewVersion(
        tenant=pb.tenant,
        name=pb.name,
        digest=pb.digest,
        num_bytes=pb.num_bytes,
        num_parameters=pb.num_parameters,
        report_json=pb.report_json,
        summary=pb.report_summary,
        labels=dict(pb.labels),
        description=pb.description,
        expires_ns=_wall_ns(pb),
        allow_update=pb.allow_update,
        store_sequence=pb.store_sequence,
        must_exist=pb.must_exist,
        expected_revision=pb.expected_revision,
        fields=_fields(pb.update_mask.paths) if pb.must_exist else FIELDS,
        identity=identity_from_pb(pb),
    )


def change_from_pb(pb: registry_pb2.UpdateEntryRequest) -> EntryChange:
    """Raises InvalidArgument (PROTOCOL_VIOLATION)."""
    return EntryChange(
        tenant=pb.tenant,
        name=pb.name,
        fields=_fields(pb.update_mask.paths),
        labels=dict(pb.labels),
        description=pb.description,
        expires_ns=_wall_ns(pb),
        expected_revision=pb.expected_revision,
        identity=identity_from_pb(pb),
    )


def identity_from_pb(pb: Any) -> RequestIdentity | None:
    """None for a request that did not give one."""
    if not pb.HasField("identity"):
        return None
    if not is_request_id(pb.identity.request_id) or not is_digest(pb.identity.fingerprint):
        raise violation("an identity needs a request id and the request's digest")
    return RequestIdentity(request_id=pb.identity.request_id, fingerprint=pb.identity.fingerprint)


def entry_to_pb(
    entry: RegistryEntry | Registration, statistics: CoreStatistics | None = None
) -> registry_pb2.RegistryEntry:
    """With leases and residencies if the statistics are given."""
    if isinstance(entry, Registration):
        return _registration_to_pb(entry)
    leases = {} if statistics is None else leases_by_digest(statistics)
    pb = registry_pb2.RegistryEntry(
        tenant=entry.tenant,
        name=entry.name,
        state=STATES[entry.state],
        version=_version(entry.current, leases),
        older_versions=[_version(version, leases) for version in entry.versions[:-1]],
        labels=dict(entry.labels),
        create_time=_timestamp(entry.created_ns),
        update_time=_timestamp(entry.updated_ns),
        revision=entry.revision,
        residencies=[] if statistics is None else _residencies(entry, statistics),
        description=entry.description,
    )
    if entry.expires_ns is not None:
        pb.expire_time.CopyFrom(_timestamp(entry.expires_ns))
    return pb


def worker_to_pb(worker: WorkerStatistics) -> registry_pb2.WorkerState:
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


def violation(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="PROTOCOL_VIOLATION")


def _registration_to_pb(registration: Registration) -> registry_pb2.RegistryEntry:
    pb = registry_pb2.RegistryEntry(
        tenant=registration.tenant,
        name=registration.name,
        state=STATES[registration.state],
        create_time=_timestamp(registration.began_ns),
        update_time=_timestamp(registration.updated_ns),
        revision=registration.revision,
    )
    if registration.error is not None:
        pb.error.CopyFrom(status.error_to_pb(registration.error))
    return pb


def _fields(paths: Collection[str]) -> frozenset[str]:
    if not FIELDS.issuperset(paths):
        raise violation("update_mask has a path that is not known")
    return frozenset(paths)


def _wall_ns(pb: Any) -> int | None:
    return int(pb.expire_time.ToNanoseconds()) if pb.HasField("expire_time") else None


def _version(version: RegisteredVersion, leases: dict[str, int]) -> registry_pb2.RegistryVersion:
    return registry_pb2.RegistryVersion(
        number=version.number,
        digest=version.digest,
        num_bytes=version.num_bytes,
        num_parameters=version.num_parameters,
        report_json=version.report_json,
        report_summary=version.summary,
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
