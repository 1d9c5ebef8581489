"""Checks of ``AdapterRef``: its form only. Whether the adapter exists, the scheduler knows."""

from loraplex.v1 import adapter_ref_pb2
from loraplex_contract import ids
from loraplex_frontend.request import AdapterPart, AdapterSource
from loraplex_frontend.request_limits import MAX_ABS_SCALE, MAX_COMPOSITION, MAX_URI_CHARS
from loraplex_frontend.violations import Violations

_INVALID = "ADAPTER_REF_INVALID"


def check_adapter(
    pb: adapter_ref_pb2.AdapterRef, found: Violations
) -> tuple[tuple[AdapterPart, ...], AdapterSource | None]:
    """The parts of a name or composition, or the source of a uri. An empty reference is an error."""
    found.known_fields_only("adapter", pb)
    forms = [name for name in ("name", "composition", "uri") if getattr(pb, name)]
    if len(forms) != 1:
        given = " and ".join(forms) or "none"
        found.add("adapter", f"exactly one of name, composition and uri must be set, got {given}", _INVALID)
        return (), None
    if pb.version and forms != ["name"]:
        found.add("adapter.version", f"goes with name only, not with {forms[0]}", _INVALID)
    if pb.HasField("scale") and forms == ["composition"]:
        found.add("adapter.scale", "does not go with composition: its parts have weights", _INVALID)
    scale = pb.scale if pb.HasField("scale") else 1.0
    found.in_range("adapter.scale", scale, -MAX_ABS_SCALE, MAX_ABS_SCALE, reason=_INVALID)
    match forms[0]:
        case "name":
            return (_part("adapter", pb.name, pb.version, scale, found),), None
        case "composition":
            return _composition(pb, found), None
        case _:
            if len(pb.uri) > MAX_URI_CHARS:
                found.add("adapter.uri", f"has {len(pb.uri)} characters, the limit is {MAX_URI_CHARS}", _INVALID)
            return (), AdapterSource(uri=pb.uri, scale=scale)


def _composition(pb: adapter_ref_pb2.AdapterRef, found: Violations) -> tuple[AdapterPart, ...]:
    if not found.at_most("adapter.composition", pb.composition, MAX_COMPOSITION, reason=_INVALID):
        return ()
    parts = []
    for index, entry in enumerate(pb.composition):
        field = f"adapter.composition[{index}]"
        weight = entry.weight if entry.HasField("weight") else 1.0
        found.in_range(f"{field}.weight", weight, -MAX_ABS_SCALE, MAX_ABS_SCALE, reason=_INVALID)
        parts.append(_part(field, entry.name, entry.version, weight, found))
    if len({(part.name, part.version) for part in parts}) < len(parts):
        found.add("adapter.composition", "names one version twice: add the weights instead", _INVALID)
    return tuple(parts)


def _part(field: str, name: str, version: str, weight: float, found: Violations) -> AdapterPart:
    if not ids.is_adapter_name(name):
        found.add(f"{field}.name", f"is no adapter name: {ids.ADAPTER_NAME_RULE}", _INVALID)
    if version and not ids.is_version(version):
        found.add(f"{field}.version", "must be a version number counted from 1 or a digest of 64 hex digits", _INVALID)
    return AdapterPart(name=name, version=version, weight=weight)
