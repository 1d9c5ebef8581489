"""What a caller wants done to a name, checked, as plain values."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from google.protobuf import timestamp_pb2

from loraplex.worker.v1 import registry_pb2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrigin:
    """Where the files are: exactly one is set."""

    uri: str = ""
    upload_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionOrder:
    """A version for a name, new or not."""

    tenant: str
    name: str
    origin: AdapterOrigin
    expected_digest: str
    allow_update: bool
    must_exist: bool = False
    expected_revision: int = 0
    """0 = any."""
    fields: frozenset[str] | None = None
    """None = all of labels, description and expire_time are set."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    expire_time: timestamp_pb2.Timestamp | None = None
    identity: registry_pb2.RequestIdentity | None = None


def identity_of(request: Any) -> registry_pb2.RequestIdentity | None:
    """None for a request without an id."""
    if not request.request_id:
        return None
    rest = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("request_id")
    data = f"{request.DESCRIPTOR.full_name}\0".encode() + rest.SerializeToString(deterministic=True)
    return registry_pb2.RequestIdentity(request_id=request.request_id, fingerprint=hashlib.sha256(data).hexdigest())
