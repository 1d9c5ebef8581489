"""The requests of AdapterService against their bounds, all of what is wrong at once."""

import time
from typing import Any, Final, NoReturn

from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex_contract import ids
from loraplex_contract.errors import Aborted, Unsupported
from loraplex_frontend.adapter_order import AdapterOrigin, VersionOrder, identity_of
from loraplex_frontend.adapter_registration import SOURCE_NAME_PREFIX
from loraplex_frontend.violations import Violations

_MAX_PAGE_SIZE: Final = 1_000
_MAX_PAGE_TOKEN_CHARS: Final = 1_024
_MAX_DESCRIPTION_BYTES: Final = 1_024
_MAX_LIFE_S: Final = 100 * 366 * 86_400
UPDATABLE: Final = frozenset({"labels", "description", "expire_time"})


def refuse_feature(feature: str) -> NoReturn:
    raise Unsupported(
        f"{feature} is not available in this release", reason="FEATURE_DISABLED", metadata={"feature": feature}
    )


def check_name(name: str) -> None:
    found = Violations()
    _add_name("name", name, found)
    found.raise_if_any()


def register_order(request: adapter_pb2.RegisterAdapterRequest, tenant: str) -> VersionOrder:
    """Raises InvalidArgument."""
    found = Violations()
    found.known_fields_only("request", request)
    _add_name("name", request.name, found)
    if request.name.startswith(SOURCE_NAME_PREFIX):
        found.add("name", f"must not begin with {SOURCE_NAME_PREFIX!r}: the server gives such names itself")
    if not request.uri and not request.upload_id:
        found.add("uri", "is missing: file:///folder, or another place that this server allows", "SOURCE_INVALID")
    _add_digest(request, found)
    found.labels("labels", request.labels)
    _add_description("description", request.description, found)
    _add_expire_time("expire_time", request, found)
    _add_request_id(request, found)
    found.raise_if_any()
    return VersionOrder(
        tenant=tenant,
        name=request.name,
        origin=AdapterOrigin(uri=request.uri, upload_id=request.upload_id),
        expected_digest=request.expected_digest,
        allow_update=request.allow_update,
        labels=request.labels,
        description=request.description,
        expire_time=_expire_time(request),
        identity=identity_of(request),
    )


def update_order(request: adapter_pb2.UpdateAdapterRequest, tenant: str) -> VersionOrder:
    """With an empty origin where the version stays. Raises InvalidArgument, and Aborted for no etag of ours."""
    found = Violations()
    adapter = request.adapter
    found.known_fields_only("request", request)
    found.known_fields_only("adapter", adapter)
    _add_name("adapter.name", adapter.name, found)
    fields = frozenset(request.update_mask.paths)
    if not fields <= UPDATABLE:
        first = sorted(fields - UPDATABLE)[0]
        found.add("update_mask", f"{first[:64]!r} cannot be changed, only {', '.join(sorted(UPDATABLE))}")
    if not fields and request.WhichOneof("source") is None:
        found.add("update_mask", "is empty and there is no source: nothing to do")
    _add_digest(request, found)
    found.labels("adapter.labels", adapter.labels)
    _add_description("adapter.description", adapter.description, found)
    if "expire_time" in fields:
        _add_expire_time("adapter.expire_time", adapter, found)
    _add_request_id(request, found)
    found.raise_if_any()
    return VersionOrder(
        tenant=tenant,
        name=adapter.name,
        origin=AdapterOrigin(uri=request.uri, upload_id=request.upload_id),
        expected_digest=request.expected_digest,
        allow_update=True,
        must_exist=True,
        expected_revision=revision_of(adapter.etag),
        fields=fields,
        labels=adapter.labels,
        description=adapter.description,
        expire_time=_expire_time(adapter),
        identity=identity_of(request),
    )


def check_unregister(request: adapter_pb2.UnregisterAdapterRequest) -> None:
    found = Violations()
    found.known_fields_only("request", request)
    _add_name("name", request.name, found)
    if request.mode not in adapter_pb2.UnregisterMode.values():
        found.add("mode", f"is {request.mode}, a mode that this server does not know")
    _add_request_id(request, found)
    found.raise_if_any()


def check_list(request: adapter_pb2.ListAdaptersRequest) -> None:
    found = Violations()
    found.known_fields_only("request", request)
    found.in_range("page_size", request.page_size, 0, _MAX_PAGE_SIZE)
    if len(request.page_token) > _MAX_PAGE_TOKEN_CHARS:
        found.add("page_token", "is not one that this server gave", "PAGE_TOKEN_INVALID")
    if request.name_prefix and not ids.is_adapter_name(request.name_prefix):
        found.add("name_prefix", f"no adapter name begins so: {ids.ADAPTER_NAME_RULE}")
    known = adapter_pb2.AdapterState.values()
    if not found.at_most("states", request.states, len(known)) or any(state not in known for state in request.states):
        found.add("states", "has a state that this server does not know")
    found.labels("labels", request.labels)
    found.raise_if_any()


def check_watch(request: adapter_pb2.WatchAdaptersRequest) -> None:
    found = Violations()
    found.known_fields_only("request", request)
    found.raise_if_any()


def revision_of(etag: str) -> int:
    """0 for no etag. Raises Aborted for one that was never given out: it cannot be the current one."""
    if not etag:
        return 0
    if len(etag) > 19 or not etag.isdecimal() or not etag.isascii() or int(etag) == 0:
        raise Aborted("etag: is not one that this server gave: read the adapter again", reason="ETAG_MISMATCH")
    return int(etag)


def _add_name(field: str, name: str, found: Violations) -> None:
    if not ids.is_adapter_name(name):
        found.add(field, f"is no adapter name: {ids.ADAPTER_NAME_RULE}")


def _add_digest(request: Any, found: Violations) -> None:
    if request.expected_digest and not ids.is_digest(request.expected_digest):
        found.add("expected_digest", "must have 64 lower-case hex digits")


def _add_description(field: str, text: str, found: Violations) -> None:
    num_bytes = len(text.encode())
    if num_bytes > _MAX_DESCRIPTION_BYTES:
        found.add(field, f"has {num_bytes} bytes, the limit is {_MAX_DESCRIPTION_BYTES}")


def _add_request_id(request: Any, found: Violations) -> None:
    if request.request_id and not ids.is_request_id(request.request_id):
        found.add("request_id", "must have 1 to 128 printable ASCII characters and no space")


def _add_expire_time(field: str, message: Any, found: Violations) -> None:
    if not message.HasField("expire_time"):
        return
    moment = message.expire_time
    left_s = moment.seconds + moment.nanos / 1e9 - time.time()
    if not 0 <= moment.nanos < 1_000_000_000 or not 0 < left_s <= _MAX_LIFE_S:
        found.add(field, "must be in the future, and at most 100 years from now")


def _expire_time(message: Any) -> timestamp_pb2.Timestamp | None:
    if not message.HasField("expire_time"):
        return None
    moment: timestamp_pb2.Timestamp = message.expire_time
    return moment
