"""Adapters from their messages."""

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter import Adapter, AdapterReport, AdapterState, AdapterVersion, AppliedModule, Residency
from loraplex_client.adapter_changes import AdapterChanges
from loraplex_client.adapter_upload import AdapterUpload, UploadedFile
from loraplex_client.convert.duration import moment
from loraplex_contract import status


def adapter(pb: adapter_pb2.Adapter) -> Adapter:
    return Adapter(
        name=pb.name,
        state=_state(pb.state),
        version=_version(pb.version),
        older_versions=tuple(_version(version) for version in pb.older_versions),
        labels=dict(pb.labels),
        create_time=moment(pb.create_time),
        update_time=moment(pb.update_time),
        etag=pb.etag,
        error=status.error_from_pb(pb.error) if pb.HasField("error") else None,
        residencies=tuple(_residency(residency) for residency in pb.residencies),
        description=pb.description,
        expire_time=moment(pb.expire_time),
    )


def changes(pb: adapter_pb2.WatchAdaptersResponse) -> AdapterChanges:
    adapters = tuple(adapter(changed) for changed in pb.changed)
    return AdapterChanges(revision=pb.revision, adapters=adapters, is_list_complete=pb.list_complete)


def upload(pb: adapter_pb2.UploadAdapterResponse) -> AdapterUpload:
    files = tuple(
        UploadedFile(
            file_name=file.file_name,
            num_bytes=file.num_bytes,
            num_committed_bytes=file.num_committed_bytes,
            is_complete=file.is_complete,
        )
        for file in pb.files
    )
    return AdapterUpload(upload_id=pb.upload_id, files=files, expire_time=moment(pb.expire_time))


def _state(number: int) -> AdapterState:
    """A state of a newer server reads as UNSPECIFIED."""
    known = adapter_pb2.AdapterState.DESCRIPTOR.values_by_number
    name = known[number].name.removeprefix("ADAPTER_STATE_") if number in known else "UNSPECIFIED"
    return AdapterState[name]


def _version(pb: adapter_pb2.AdapterVersion) -> AdapterVersion:
    return AdapterVersion(
        number=pb.number,
        digest=pb.digest,
        report=_report(pb.report),
        create_time=moment(pb.create_time),
        num_leases=pb.num_leases,
    )


def _report(pb: adapter_pb2.AdapterReport) -> AdapterReport:
    return AdapterReport(
        kind=pb.kind,
        modules=tuple(_module(module) for module in pb.modules),
        max_rank=pb.max_rank,
        dtype=pb.dtype,
        num_bytes=pb.num_bytes,
        base_model_name=pb.base_model_name,
        notes=tuple(pb.notes),
    )


def _module(pb: adapter_pb2.AppliedModule) -> AppliedModule:
    return AppliedModule(module=pb.module, rank=pb.rank, scale=pb.scale, dtype=pb.dtype, num_bytes=pb.num_bytes)


def _residency(pb: adapter_pb2.Residency) -> Residency:
    known = adapter_pb2.AdapterTier.DESCRIPTOR.values_by_number
    tier = known[pb.tier].name.removeprefix("ADAPTER_TIER_").lower() if pb.tier in known else "unspecified"
    return Residency(worker_id=pb.worker_id, tier=tier, digest=pb.digest)
