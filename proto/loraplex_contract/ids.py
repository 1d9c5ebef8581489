"""Names that cross processes, and the forms they may take."""

import re
from typing import Final, NewType

Digest = NewType("Digest", str)
"""SHA-256 of an adapter version's canonical form: 64 lower-case hex digits."""
Tenant = NewType("Tenant", str)
AdapterName = NewType("AdapterName", str)
RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)
FrontendId = NewType("FrontendId", str)
Incarnation = NewType("Incarnation", str)
"""Differs for every start of a process, so that a late message of a dead one is recognised."""

DEFAULT_TENANT: Final = Tenant("default")

_ADAPTER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERSION_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

ADAPTER_NAME_RULE: Final = "1 to 63 of a-z 0-9 . _ - and first a letter or digit"


def is_adapter_name(text: str) -> bool:
    return _ADAPTER_NAME.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """A version number counted from 1, or a digest."""
    return is_digest(text) or _VERSION_NUMBER.fullmatch(text) is not None


def is_request_id(text: str) -> bool:
    return _REQUEST_ID.fullmatch(text) is not None
