"""A registered adapter and what validation found in it."""

import dataclasses
import datetime
import enum
from collections.abc import Mapping

from loraplex_contract.errors import LoraplexError


class AdapterState(enum.StrEnum):
    """Where an adapter is in its life."""

    UNSPECIFIED = "unspecified"
    PENDING = "pending"
    FETCHING = "fetching"
    VALIDATING = "validating"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    DELETED = "deleted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AppliedModule:
    """One module that the adapter changes."""

    module: str
    rank: int
    scale: float
    """What the product B·A is multiplied by."""
    dtype: str
    num_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """What validation found and serving applies."""

    kind: str
    modules: tuple[AppliedModule, ...]
    """Empty in lists: ``get_adapter`` has them."""
    max_rank: int
    dtype: str
    num_bytes: int
    base_model_name: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One immutable artifact."""

    number: int
    digest: str
    report: AdapterReport
    create_time: datetime.datetime | None
    num_leases: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Where a version is on one worker: ``store``, ``host`` or ``device``."""

    worker_id: str
    tier: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A name and the version that it points at."""

    name: str
    state: AdapterState
    version: AdapterVersion
    older_versions: tuple[AdapterVersion, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    create_time: datetime.datetime | None = None
    update_time: datetime.datetime | None = None
    etag: str = ""
    error: LoraplexError | None = None
    """With ``FAILED``."""
    residencies: tuple[Residency, ...] = ()
    description: str = ""
    expire_time: datetime.datetime | None = None
    """When the name is unregistered by itself. None: never."""
