"""Which adapter version is in which state on one worker."""

import dataclasses
import enum
from collections.abc import Iterable, Iterator

from loraplex_contract.errors import LoraplexError


class Tier(enum.Enum):
    LOADING = "LOADING"
    DEVICE = "DEVICE"
    EVICTING = "EVICTING"
    FAILED = "FAILED"
    """Holds no pages. Not asked for again before ``retry_ns``."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Resident:
    """One version's state; a version that the worker does not know of has none."""

    digest: str
    tier: Tier
    since_ns: int
    num_users: int = 0
    """Admitted sequences on it: they pin it to the device."""
    last_used_ns: int = 0
    num_failures: int = 0
    """Loads in a row that failed."""
    retry_ns: int = 0
    error: LoraplexError | None = None
    is_final: bool = False
    """Whether waiting for the next try is pointless: who waits is told the error."""


class Residency:
    """All versions that one worker has, is given or failed to load. Pages are the ledger's business."""

    def __init__(self) -> None:
        self._residents: dict[str, Resident] = {}
        self._counts = dict.fromkeys(Tier, 0)
        self.num_in_use = 0
        """Versions that admitted sequences run on."""

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents.values())

    def get(self, digest: str) -> Resident | None:
        return self._residents.get(digest)

    def tier(self, digest: str) -> Tier | None:
        resident = self._residents.get(digest)
        return None if resident is None else resident.tier

    def has_all(self, digests: Iterable[str]) -> bool:
        return all(self.tier(digest) is Tier.DEVICE for digest in digests)

    def is_moving(self, digests: Iterable[str]) -> bool:
        """Whether any is on its way up or down."""
        return any(self.tier(digest) in (Tier.LOADING, Tier.EVICTING) for digest in digests)

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that a load would have to be asked for."""
        return [digest for digest in digests if self.tier(digest) in (None, Tier.FAILED)]

    def failure(self, digests: Iterable[str], *, now_ns: int) -> Resident | None:
        """The first of them that the worker is not asked for now, since its last load failed a short while ago."""
        for digest in digests:
            resident = self._residents.get(digest)
            if resident is not None and resident.tier is Tier.FAILED and now_ns < resident.retry_ns:
                return resident
        return None

    def device_ns(self, digests: Iterable[str]) -> int:
        """When the last of them came to the device; 0 for none."""
        residents = [self._residents.get(digest) for digest in digests]
        return max((r.since_ns for r in residents if r is not None and r.tier is Tier.DEVICE), default=0)

    @property
    def num_loading(self) -> int:
        return self._counts[Tier.LOADING]

    @property
    def num_idle(self) -> int:
        """On the device with no admitted sequence."""
        return self._counts[Tier.DEVICE] - self.num_in_use

    def set_loading(self, digest: str, *, now_ns: int) -> None:
        resident = self._residents.get(digest)
        if resident is None:
            self._residents[digest] = Resident(digest=digest, tier=Tier.LOADING, since_ns=now_ns)
            self._counts[Tier.LOADING] += 1
            return
        assert resident.tier is Tier.FAILED, f"load of {digest} while {resident.tier.value}"
        self._move(resident, Tier.LOADING, now_ns=now_ns)

    def set_device(self, digest: str, *, now_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier in (Tier.LOADING, Tier.EVICTING), f"{digest} came to the device from {resident.tier.value}"
        self._move(resident, Tier.DEVICE, now_ns=now_ns)
        resident.last_used_ns = now_ns
        resident.num_failures, resident.error = 0, None

    def set_evicting(self, digest: str, *, now_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier is Tier.DEVICE, f"eviction of {digest} while {resident.tier.value}"
        assert resident.num_users == 0, f"eviction of {digest} under {resident.num_users} sequences"
        self._move(resident, Tier.EVICTING, now_ns=now_ns)

    def set_failed(self, digest: str, error: LoraplexError, *, now_ns: int, is_final: bool, backoff_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier is Tier.LOADING, f"{digest} failed to load while {resident.tier.value}"
        self._move(resident, Tier.FAILED, now_ns=now_ns)
        resident.num_failures += 1
        resident.retry_ns, resident.error, resident.is_final = now_ns + backoff_ns, error, is_final

    def forget(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        assert resident.num_users == 0, f"{digest} is forgotten under {resident.num_users} sequences"
        self._counts[resident.tier] -= 1

    def hold(self, digests: Iterable[str], *, now_ns: int) -> None:
        for digest in digests:
            resident = self._residents[digest]
            assert resident.tier is Tier.DEVICE, f"admission on {digest} while {resident.tier.value}"
            self.num_in_use += resident.num_users == 0
            resident.num_users += 1
            resident.last_used_ns = now_ns

    def let_go(self, digests: Iterable[str], *, now_ns: int) -> None:
        for digest in digests:
            resident = self._residents[digest]
            assert resident.num_users > 0, f"{digest} let go once too often"
            resident.num_users -= 1
            self.num_in_use -= resident.num_users == 0
            resident.last_used_ns = now_ns

    def evictable(self, *, keep: Iterable[str] = ()) -> list[Resident]:
        """On the device with no admitted sequence, the longest unused first."""
        kept = set(keep)
        idle = [
            resident
            for resident in self
            if resident.tier is Tier.DEVICE and resident.num_users == 0 and resident.digest not in kept
        ]
        return sorted(idle, key=lambda resident: (resident.last_used_ns, resident.digest))

    def check(self) -> None:
        """Assert that the counts are those of the residents."""
        for tier, count in self._counts.items():
            assert count == sum(resident.tier is tier for resident in self), f"count of {tier.value}"
        assert self.num_in_use == sum(resident.num_users > 0 for resident in self)

    def _move(self, resident: Resident, tier: Tier, *, now_ns: int) -> None:
        self._counts[resident.tier] -= 1
        self._counts[tier] += 1
        resident.tier, resident.since_ns = tier, now_ns
