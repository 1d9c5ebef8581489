"""Which adapter version is in which state on one worker, and how many pages each state holds."""

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from typing import Final

from loraplex_contract.errors import LoraplexError


class Tier(enum.Enum):
    LOADING = "LOADING"
    DEVICE = "DEVICE"
    EVICTING = "EVICTING"
    FAILED = "FAILED"
    """Holds no pages. Not asked for again before ``retry_ns``."""


class Standby(enum.Enum):
    """What the pages of a version are there for."""

    MOVING_IN = "MOVING_IN"
    IN_USE = "IN_USE"
    WAITED_FOR = "WAITED_FOR"
    """On the device, unused, and somebody waits for it: a promise."""
    IDLE = "IDLE"
    MOVING_OUT = "MOVING_OUT"
    NONE = "NONE"


@dataclasses.dataclass(slots=True, kw_only=True)
class Resident:
    """One version's state; a version that the worker does not know of has none."""

    digest: str
    tier: Tier
    since_ns: int
    num_pages: int = 0
    num_users: int = 0
    """Admitted sequences on it: they pin it to the device."""
    last_used_ns: int = 0
    num_failures: int = 0
    """Loads in a row that failed."""
    retry_ns: int = 0
    error: LoraplexError | None = None
    is_final: bool = False
    """Whether waiting for the next try is pointless: who waits is told the error."""
    standby: Standby = Standby.NONE
    is_refused: bool = False
    """Its backoff is not over: nobody asks for it."""


_OF_TIER: Final = {Tier.LOADING: Standby.MOVING_IN, Tier.EVICTING: Standby.MOVING_OUT, Tier.FAILED: Standby.NONE}


class Residency:
    """All versions that one worker has, is given or failed to load.

    Args:
        waited: digests that queued sequences wait for, as the waiting room keeps them; see ``reclassify``.
    """

    def __init__(self, waited: Container[str] = ()) -> None:
        self._waited: Final = waited
        self._residents: dict[str, Resident] = {}
        self._counts = dict.fromkeys(Tier, 0)
        self._pages = dict.fromkeys(Standby, 0)
        self._idle: Final[dict[Standby, OrderedDict[str, Resident]]] = {
            Standby.IDLE: OrderedDict(),
            Standby.WAITED_FOR: OrderedDict(),
        }
        """The longest unused first."""
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

    def are_in_use(self, digests: Iterable[str]) -> bool:
        """Whether admitted sequences run on each of them."""
        for digest in digests:
            resident = self._residents.get(digest)
            if resident is None or not resident.num_users:
                return False
        return True

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that a load would have to be asked for."""
        return [digest for digest in digests if self.tier(digest) in (None, Tier.FAILED)]

    def failure(self, digests: Iterable[str], *, now_ns: int) -> Resident | None:
        """The first of them that the worker is not asked for now, since its last load failed a short while ago."""
        for digest in digests:
            resident = self._residents.get(digest)
            if resident is not None and resident.is_refused and now_ns < resident.retry_ns:
                return resident
        return None

    def is_refused(self, digests: Iterable[str]) -> bool:
        """Whether any of them is not asked for until ``allow`` says so."""
        for digest in digests:
            resident = self._residents.get(digest)
            if resident is not None and resident.is_refused:
                return True
        return False

    def allow(self, digest: str, *, now_ns: int) -> bool:
        """Whether the backoff of a failed load is over now, and was not before."""
        resident = self._residents.get(digest)
        if resident is None or not resident.is_refused or now_ns < resident.retry_ns:
            return False
        resident.is_refused = False
        return True

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

    def num_pages(self, standby: Standby) -> int:
        return self._pages[standby]

    @property
    def num_pages_ahead(self) -> int:
        """Of what is there, or on its way, for nothing but sequences that wait."""
        return self._pages[Standby.MOVING_IN] + self._pages[Standby.WAITED_FOR]

    def pages_ahead_of(self, digests: Iterable[str]) -> int:
        """The part of ``num_pages_ahead`` that is theirs."""
        residents = (self._residents.get(digest) for digest in digests)
        ahead = (Standby.MOVING_IN, Standby.WAITED_FOR)
        return sum(r.num_pages for r in residents if r is not None and r.standby in ahead)

    @property
    def num_moving(self) -> int:
        """On their way up or down."""
        return self._counts[Tier.LOADING] + self._counts[Tier.EVICTING]

    def idle(self, standby: Standby) -> Iterator[Resident]:
        """On the device, unused, waited for or not: the longest unused first."""
        return iter(self._idle[standby].values())

    def reclassify(self, digest: str) -> None:
        """Somebody waits for it now, or nobody any more."""
        resident = self._residents.get(digest)
        if resident is not None:
            self._sort(resident)

    def set_loading(self, digest: str, *, num_pages: int, now_ns: int) -> None:
        resident = self._residents.get(digest)
        if resident is None:
            resident = self._residents[digest] = Resident(digest=digest, tier=Tier.FAILED, since_ns=now_ns)
            self._counts[Tier.FAILED] += 1
        assert resident.tier is Tier.FAILED, f"load of {digest} while {resident.tier.value}"
        resident.num_pages, resident.is_refused = num_pages, False
        self._move(resident, Tier.LOADING, now_ns=now_ns)

    def set_device(self, digest: str, *, now_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier in (Tier.LOADING, Tier.EVICTING), f"{digest} came to the device from {resident.tier.value}"
        resident.last_used_ns = now_ns
        resident.num_failures, resident.error = 0, None
        self._move(resident, Tier.DEVICE, now_ns=now_ns)

    def set_evicting(self, digest: str, *, now_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier is Tier.DEVICE, f"eviction of {digest} while {resident.tier.value}"
        assert resident.num_users == 0, f"eviction of {digest} under {resident.num_users} sequences"
        self._move(resident, Tier.EVICTING, now_ns=now_ns)

    def set_failed(self, digest: str, error: LoraplexError, *, now_ns: int, is_final: bool, backoff_ns: int) -> None:
        resident = self._residents[digest]
        assert resident.tier is Tier.LOADING, f"{digest} failed to load while {resident.tier.value}"
        resident.num_failures += 1
        resident.is_refused = True
        resident.retry_ns, resident.error, resident.is_final = now_ns + backoff_ns, error, is_final
        self._move(resident, Tier.FAILED, now_ns=now_ns)

    def forget(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        assert resident.num_users == 0, f"{digest} is forgotten under {resident.num_users} sequences"
        self._counts[resident.tier] -= 1
        self._leave(resident)

    def hold(self, digests: Iterable[str], *, now_ns: int) -> bool:
        """Whether any of them was not in use before."""
        num_before = self.num_in_use
        for digest in digests:
            resident = self._residents[digest]
            assert resident.tier is Tier.DEVICE, f"admission on {digest} while {resident.tier.value}"
            self.num_in_use += resident.num_users == 0
            resident.num_users += 1
            resident.last_used_ns = now_ns
            self._sort(resident)
        return self.num_in_use > num_before

    def let_go(self, digests: Iterable[str], *, now_ns: int) -> None:
        for digest in digests:
            resident = self._residents[digest]
            assert resident.num_users > 0, f"{digest} let go once too often"
            resident.num_users -= 1
            self.num_in_use -= resident.num_users == 0
            resident.last_used_ns = now_ns
            self._sort(resident)

    def check(self) -> None:
        """Assert that the counts are those of the residents."""
        for tier, count in self._counts.items():
            assert count == sum(resident.tier is tier for resident in self), f"count of {tier.value}"
        assert self.num_in_use == sum(resident.num_users > 0 for resident in self)
        for standby, pages in self._pages.items():
            members = [resident for resident in self if resident.standby is standby]
            assert all(self._standby(resident) is standby for resident in members), f"{standby.value}: {members}"
            assert pages == sum(resident.num_pages for resident in members), f"pages that are {standby.value}"
            if standby in self._idle:
                assert {r.digest for r in members} == set(self._idle[standby]), f"who is {standby.value}"

    def _move(self, resident: Resident, tier: Tier, *, now_ns: int) -> None:
        self._counts[resident.tier] -= 1
        self._counts[tier] += 1
        resident.tier, resident.since_ns = tier, now_ns
        self._sort(resident)

    def _standby(self, resident: Resident) -> Standby:
        if resident.tier is not Tier.DEVICE:
            return _OF_TIER[resident.tier]
        if resident.num_users:
            return Standby.IN_USE
        return Standby.WAITED_FOR if resident.digest in self._waited else Standby.IDLE

    def _sort(self, resident: Resident) -> None:
        standby = self._standby(resident)
        if standby is resident.standby:
            return
        self._leave(resident)
        resident.standby = standby
        if standby is Standby.NONE:
            resident.num_pages = 0
            return
        self._pages[standby] += resident.num_pages
        if standby in self._idle:
            self._idle[standby][resident.digest] = resident

    def _leave(self, resident: Resident) -> None:
        if resident.standby is Standby.NONE:
            return
        self._pages[resident.standby] -= resident.num_pages
        if resident.standby in self._idle:
            del self._idle[resident.standby][resident.digest]
