"""Names, the versions that they point at, and who holds each version."""

import dataclasses
import enum
from collections.abc import Iterable

from loraplex_contract.errors import FailedPrecondition, NotFound, field_error
from loraplex_scheduler.core.adapter import AdapterPart, ResolvedAdapter


class EntryState(enum.Enum):
    READY = "READY"
    DRAINING = "DRAINING"


@dataclasses.dataclass(slots=True, kw_only=True)
class AdapterEntry:
    """One tenant's name."""

    tenant: str
    name: str
    state: EntryState = EntryState.READY
    digests: dict[int, str] = dataclasses.field(default_factory=dict)
    """By version number."""
    num_leases: int = 0

    @property
    def current(self) -> int:
        return max(self.digests)


class Catalog:
    """Resolves names once per request and counts leases: per name and per digest."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], AdapterEntry] = {}
        self._draining: dict[tuple[str, str], AdapterEntry] = {}
        self._num_parameters: dict[str, int] = {}
        self._num_names: dict[str, int] = {}
        """How many versions of how many names are this digest."""
        self._leases: dict[str, int] = {}

    def commit(self, tenant: str, name: str, number: int, digest: str, num_parameters: int) -> None:
        entry = self._entries.setdefault((tenant, name), AdapterEntry(tenant=tenant, name=name))
        assert entry.state is EntryState.READY, f"commit to {name}, which is draining: the registry must refuse it"
        if entry.digests.get(number) == digest:
            return
        assert number not in entry.digests, f"version {number} of {name} changed its digest"
        entry.digests[number] = digest
        self._num_parameters[digest] = num_parameters
        self._num_names[digest] = self._num_names.get(digest, 0) + 1

    def num_parameters(self, digest: str) -> int:
        return self._num_parameters[digest]

    def num_leases(self, digest: str) -> int:
        return self._leases.get(digest, 0)

    @property
    def num_all_leases(self) -> int:
        return sum(self._leases.values())

    def resolve(self, tenant: str, parts: Iterable[AdapterPart]) -> tuple[ResolvedAdapter, ...]:
        """The exact version of each part.

        Raises:
            NotFound: an unknown name or version; another tenant's reads the same.
            FailedPrecondition: the name is being unregistered.
            InvalidArgument: one version twice.
        """
        resolved = tuple(self._resolve(tenant, part) for part in parts)
        if len({part.digest for part in resolved}) < len(resolved):
            raise field_error("adapter.composition", "one version twice: give it once, with the sum of the weights")
        return resolved

    def _resolve(self, tenant: str, part: AdapterPart) -> ResolvedAdapter:
        entry = self._entries.get((tenant, part.name))
        if entry is None:
            message = f"adapter {part.name!r} is not registered: register it first, or correct the name"
            raise NotFound(message, reason="ADAPTER_NOT_FOUND", metadata={"adapter": part.name})
        if entry.state is EntryState.DRAINING:
            message = f"adapter {part.name!r} is being unregistered and takes no new requests"
            raise FailedPrecondition(message, reason="ADAPTER_DRAINING", metadata={"adapter": part.name})
        number = _version_number(entry, part.version)
        return ResolvedAdapter(name=part.name, number=number, digest=entry.digests[number], weight=part.weight)

    def lease(self, tenant: str, adapters: Iterable[ResolvedAdapter]) -> None:
        for adapter in adapters:
            self._entries[tenant, adapter.name].num_leases += 1
            self._leases[adapter.digest] = self._leases.get(adapter.digest, 0) + 1

    def release(self, tenant: str, adapters: Iterable[ResolvedAdapter]) -> None:
        for adapter in adapters:
            entry = self._entries[tenant, adapter.name]
            entry.num_leases -= 1
            self._leases[adapter.digest] -= 1
            assert entry.num_leases >= 0, f"a lease of {adapter.name} was dropped twice"
            if self._leases[adapter.digest] == 0:
                del self._leases[adapter.digest]

    def drain(self, tenant: str, name: str) -> bool:
        """New requests are refused from now on. Whether the name is known."""
        entry = self._entries.get((tenant, name))
        if entry is not None:
            entry.state = EntryState.DRAINING
            self._draining[tenant, name] = entry
        return entry is not None

    def drained(self) -> list[AdapterEntry]:
        """Draining names without a lease."""
        return [entry for entry in self._draining.values() if entry.num_leases == 0]

    def sole_digests(self, entry: AdapterEntry) -> list[str]:
        """The entry's versions that no other name points at, in the order of their numbers."""
        own: dict[str, int] = {}
        for digest in entry.digests.values():
            own[digest] = own.get(digest, 0) + 1
        return [digest for digest, count in own.items() if self._num_names[digest] == count]

    def remove(self, entry: AdapterEntry) -> None:
        assert entry.num_leases == 0, f"{entry.name} is removed under {entry.num_leases} leases"
        del self._entries[entry.tenant, entry.name], self._draining[entry.tenant, entry.name]
        for digest in entry.digests.values():
            self._num_names[digest] -= 1
            if self._num_names[digest] == 0:
                del self._num_names[digest], self._num_parameters[digest]

    def check(self, holders: Iterable[tuple[str, tuple[ResolvedAdapter, ...]]]) -> None:
        """Assert that exactly the given (tenant, adapters) hold leases."""
        by_name: dict[tuple[str, str], int] = {}
        by_digest: dict[str, int] = {}
        for tenant, adapters in holders:
            for adapter in adapters:
                by_name[tenant, adapter.name] = by_name.get((tenant, adapter.name), 0) + 1
                by_digest[adapter.digest] = by_digest.get(adapter.digest, 0) + 1
        assert by_digest == self._leases, "a lease leaked, or was dropped too early"
        for key, entry in self._entries.items():
            assert entry.num_leases == by_name.get(key, 0), f"leases of {key} do not add up"


def _version_number(entry: AdapterEntry, version: str) -> int:
    if not version:
        return entry.current
    if version.isdecimal() and len(version) < 64:
        if int(version) in entry.digests:
            return int(version)
    else:
        for number, digest in reversed(entry.digests.items()):
            if digest == version:
                return number
    message = f"adapter {entry.name!r} has no version {version!r}; the current one is {entry.current}"
    metadata = {"adapter": entry.name, "version": version}
    raise NotFound(message, reason="ADAPTER_NOT_FOUND", metadata=metadata)
