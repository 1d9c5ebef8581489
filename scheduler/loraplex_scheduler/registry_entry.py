"""What the registry knows of a name, as plain values."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Final

FIELDS: Final = frozenset({"labels", "description", "expire_time"})
"""What can be changed of an entry beside its version."""


class EntryState(enum.Enum):
    READY = "READY"
    DRAINING = "DRAINING"
    DELETED = "DELETED"
    """Never stored: the last that is heard of a name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """One artifact that a name points at, or has pointed at."""

    number: int
    digest: str
    num_bytes: int
    """Of the artifact in the store."""
    num_parameters: int
    report_json: str
    """Opaque here: written and read by frontends. Empty where only the summary was read."""
    created_ns: int
    """Wall clock, since 1970."""
    summary: bytes = b""
    """Opaque too: the report without its modules."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    tenant: str
    name: str
    state: EntryState
    versions: tuple[RegisteredVersion, ...]
    """Oldest first; the last is current. Never empty."""
    labels: Mapping[str, str]
    revision: int
    """The registry's, at the last change of the entry."""
    created_ns: int
    updated_ns: int
    description: str = ""
    expires_ns: int | None = None
    """Wall clock. None = never."""

    @property
    def current(self) -> RegisteredVersion:
        return self.versions[-1]

    def without_reports(self) -> "RegistryEntry":
        """Of bounded size, for lists and histories."""
        versions = tuple(dataclasses.replace(version, report_json="") for version in self.versions)
        return dataclasses.replace(self, versions=versions)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestIdentity:
    """A request that may come again."""

    request_id: str
    fingerprint: str
    """Of all that was asked for: the same id with another one is refused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What a frontend commits."""

    tenant: str
    name: str
    digest: str
    num_bytes: int
    num_parameters: int
    report_json: str
    labels: Mapping[str, str]
    allow_update: bool = False
    summary: bytes = b""
    description: str = ""
    expires_ns: int | None = None
    store_sequence: int | None = None
    """Of the store's deletions when the committer began. None: the bytes cannot have been deleted since."""
    must_exist: bool = False
    expected_revision: int = 0
    """0 = any."""
    fields: frozenset[str] = FIELDS
    """Which of ``FIELDS`` are taken where the name is there already."""
    identity: RequestIdentity | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EntryChange:
    """New values of an entry's ``fields``."""

    tenant: str
    name: str
    fields: frozenset[str]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    expires_ns: int | None = None
    expected_revision: int = 0
    identity: RequestIdentity | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    entries: tuple[RegistryEntry, ...]
    next_page_token: str
    """Empty: this was the last."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to delete bytes from the store, for a time."""

    number: int
    digests: tuple[str, ...]
