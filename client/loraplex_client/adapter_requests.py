"""The messages that change adapters, from plain values."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter import AdapterState
from loraplex_client.adapter_source import adapter_uri
from loraplex_client.adapter_upload import AdapterUpload
from loraplex_contract.errors import field_error

AdapterSource = str | Path | AdapterUpload
"""A folder that the server can read, a URI, or an upload."""
_MODES: Final = {
    (False, False): adapter_pb2.UNREGISTER_MODE_DRAIN,
    (True, False): adapter_pb2.UNREGISTER_MODE_CANCEL,
    (False, True): adapter_pb2.UNREGISTER_MODE_FAIL_IF_IN_USE,
}


def set_source(
    request: adapter_pb2.RegisterAdapterRequest | adapter_pb2.UpdateAdapterRequest, source: AdapterSource
) -> None:
    if isinstance(source, AdapterUpload):
        request.upload_id = source.upload_id
    else:
        request.uri = adapter_uri(source)


def expiry(moment: datetime.datetime | None) -> timestamp_pb2.Timestamp | None:
    """Raises InvalidArgument for a time without a time zone: it could be any of 24 hours."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise field_error("expire_time", "has no time zone: use datetime.now(datetime.UTC) + ...")
    pb = timestamp_pb2.Timestamp()
    pb.FromDatetime(moment.astimezone(datetime.UTC))
    return pb


def update_request(
    name: str,
    *,
    source: AdapterSource | None,
    labels: Mapping[str, str] | None,
    description: str | None,
    expire_time: datetime.datetime | None,
    never_expires: bool,
    etag: str,
) -> adapter_pb2.UpdateAdapterRequest:
    """With a mask of what is given."""
    adapter = adapter_pb2.Adapter(
        name=name, labels=dict(labels or {}), description=description or "", etag=etag, expire_time=expiry(expire_time)
    )
    if expire_time is not None and never_expires:
        raise field_error("expire_time", "goes not with never_expires")
    request = adapter_pb2.UpdateAdapterRequest(adapter=adapter)
    given = {
        "labels": labels is not None,
        "description": description is not None,
        "expire_time": expire_time is not None or never_expires,
    }
    request.update_mask.paths.extend(field for field, is_given in given.items() if is_given)
    if source is not None:
        set_source(request, source)
    return request


def unregister_mode(*, cancel_running: bool, fail_if_in_use: bool) -> Any:
    """Raises InvalidArgument for both at once."""
    if cancel_running and fail_if_in_use:
        raise field_error("fail_if_in_use", "goes not with cancel_running")
    return _MODES[cancel_running, fail_if_in_use]


def state_pb(state: AdapterState) -> Any:
    return adapter_pb2.AdapterState.Value(f"ADAPTER_STATE_{state.name}")
