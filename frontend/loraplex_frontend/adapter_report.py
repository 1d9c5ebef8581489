"""What ingest found, as the public report, and the registry's entries as public adapters."""

from google.protobuf import json_format

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2
from loraplex_adapters.ingest import IngestReport


def report_pb(report: IngestReport) -> adapter_pb2.AdapterReport:
    pb = adapter_pb2.AdapterReport(
        kind=report.spec.kind,
        max_rank=report.spec.max_rank,
        dtype=report.spec.dtype,
        num_bytes=report.spec.num_bytes,
        base_model_name=report.spec.base_model_name,
        notes=report.notes,
    )
    for site in report.sites:
        pb.modules.add(module=site.key, rank=site.rank, scale=site.scale, dtype=site.dtype, num_bytes=site.num_bytes)
    return pb


def report_json(pb: adapter_pb2.AdapterReport) -> str:
    """For the registry, which keeps it and looks at nothing in it."""
    return json_format.MessageToJson(pb, indent=None)


def report_summary(pb: adapter_pb2.AdapterReport) -> bytes:
    """The same without its modules, for lists: quick to read, and small however many modules there are."""
    summary = adapter_pb2.AdapterReport()
    summary.CopyFrom(pb)
    summary.ClearField("modules")
    return summary.SerializeToString()


def adapter_pb(entry: registry_pb2.RegistryEntry, *, with_modules: bool = True) -> adapter_pb2.Adapter:
    """The public form of a registry entry."""
    pb = adapter_pb2.Adapter(
        name=entry.name,
        state=entry.state,
        labels=entry.labels,
        etag=f"{entry.revision}",
        residencies=entry.residencies,
        description=entry.description,
    )
    if entry.HasField("version"):
        pb.version.CopyFrom(_version_pb(entry.version, with_modules))
    pb.older_versions.extend(_version_pb(version, with_modules) for version in entry.older_versions)
    if entry.HasField("create_time"):
        pb.create_time.CopyFrom(entry.create_time)
    if entry.HasField("update_time"):
        pb.update_time.CopyFrom(entry.update_time)
    if entry.HasField("expire_time"):
        pb.expire_time.CopyFrom(entry.expire_time)
    if entry.HasField("error"):
        pb.error.CopyFrom(entry.error)
    return pb


def _version_pb(version: registry_pb2.RegistryVersion, with_modules: bool) -> adapter_pb2.AdapterVersion:
    pb = adapter_pb2.AdapterVersion(number=version.number, digest=version.digest, num_leases=version.num_leases)
    if version.HasField("create_time"):
        pb.create_time.CopyFrom(version.create_time)
    if version.report_json:
        # A newer frontend may have written more than this one knows.
        json_format.Parse(version.report_json, pb.report, ignore_unknown_fields=True)
    elif version.report_summary:
        pb.report.ParseFromString(version.report_summary)
    if not with_modules:
        pb.report.ClearField("modules")
    return pb
