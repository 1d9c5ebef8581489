"""Moves adapters on and off the workers, and makes room on them by doing so."""

import enum
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

from loraplex_contract.errors import Internal, LoraplexError, TryLater
from loraplex_scheduler.core.alarms import Alarms
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.command import Command, EvictAdapter, LoadAdapter
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.residency import Resident, Standby, Tier
from loraplex_scheduler.core.worker import Worker


class Room(enum.Enum):
    """What became of a wish for pages."""

    NOW = "NOW"
    COMING = "COMING"
    """When evictions that were asked for are done."""
    NONE = "NONE"


class Wake(NamedTuple):
    """A version on one registration of a worker: its backoff is over, or its answer is overdue."""

    worker_id: str
    epoch: int
    digest: str


_MAX_FORCED: Final = 32
"""Adapters that somebody waits for, and that are compared when one of them must give way."""
_MAX_WAKES: Final = 256


class Loader:
    """Asks for loads and evictions, and takes the answers.

    Args:
        moved: told of every version that changed its tier on a worker.
        right_of: the right of those who wait for a version; the greatest key gives way first.
        loaded: told of each load that went well: pages and nanoseconds.
    """

    def __init__(
        self,
        config: CoreConfig,
        catalog: Catalog,
        emit: Callable[[Command], None],
        *,
        moved: Callable[[str], None],
        right_of: Callable[[str], tuple[float, ...]],
        loaded: Callable[[int, int], None],
    ) -> None:
        self._config: Final = config
        self._catalog: Final = catalog
        self._emit: Final = emit
        self._moved: Final = moved
        self._right_of: Final = right_of
        self._loaded: Final = loaded
        self._alarms: Final = Alarms[Wake]()

    def make_room(
        self, worker: Worker, num_pages: int, *, keep: Collection[str] = (), is_forced: bool, now_ns: int
    ) -> Room:
        """See that ``num_pages`` are free, evicting idle adapters if that is enough: the longest unused first.

        Args:
            keep: digests that stay, whatever their use.
            is_forced: evict also what somebody waits for, those of least right first.
        """
        if worker.ledger.free >= num_pages:
            return Room.NOW
        wanted = num_pages - worker.ledger.free - worker.pages_on_the_way()
        if wanted <= 0:
            return Room.COMING
        if self._evictable_pages(worker, keep, is_forced=is_forced) < wanted:
            return Room.NONE
        while wanted > 0:
            resident = self._next_victim(worker, keep, is_forced=is_forced)
            wanted -= resident.num_pages
            self.evict(worker, resident.digest, now_ns=now_ns)
        return Room.COMING

    def will_have(self, worker: Worker, num_pages: int, *, keep: Collection[str]) -> bool:
        """Whether the pages come by waiting alone: no adapter goes that somebody waits for."""
        kept = (worker.residency.get(digest) for digest in keep)
        num_kept = sum(r.num_pages for r in kept if r is not None and r.standby in (Standby.IDLE, Standby.IN_USE))
        return worker.info.num_pages - worker.residency.num_pages_ahead - num_kept >= num_pages

    def _evictable_pages(self, worker: Worker, keep: Collection[str], *, is_forced: bool) -> int:
        standbys = (Standby.IDLE, Standby.WAITED_FOR) if is_forced else (Standby.IDLE,)
        kept = (worker.residency.get(digest) for digest in keep)
        num_kept = sum(r.num_pages for r in kept if r is not None and r.standby in standbys)
        return sum(worker.residency.num_pages(standby) for standby in standbys) - num_kept

    def _next_victim(self, worker: Worker, keep: Collection[str], *, is_forced: bool) -> Resident:
        """There is one: what nobody waits for, then the least right among the longest unused."""
        resident = next(_unused(worker, Standby.IDLE, keep), None)
        if resident is not None:
            return resident
        assert is_forced, f"{worker} has nothing to evict"
        some = itertools.islice(_unused(worker, Standby.WAITED_FOR, keep), _MAX_FORCED)
        return max(some, key=lambda resident: self._right_of(resident.digest))

    def evict(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        """The pages stay charged until the worker has answered."""
        worker.residency.set_evicting(digest, now_ns=now_ns)
        self._watch(worker, digest, now_ns=now_ns)
        self._moved(digest)
        worker.counters.num_evictions += 1
        self._emit(EvictAdapter(worker_id=worker.worker_id, epoch=worker.info.epoch, digest=digest))

    def num_pages(self, worker: Worker, digests: Collection[str]) -> int:
        return sum(worker.adapter_pages_for(self._catalog.num_parameters(digest)) for digest in digests)

    def can_load_more(self, worker: Worker) -> bool:
        return worker.residency.num_loading < self._config.max_loads_in_flight

    def is_far_ahead(self, worker: Worker, num_pages: int, own: Collection[str]) -> bool:
        """Whether loading this as well would leave too much of the pool to adapters that nothing runs on yet.

        Args:
            own: those of the sequence that wants the load do not count.
        """
        ahead = worker.residency.num_pages_ahead - worker.residency.pages_ahead_of(own)
        return ahead > 0 and ahead + num_pages > self._config.max_pages_ahead * worker.info.num_pages

    def load(self, worker: Worker, digests: Collection[str], *, now_ns: int) -> None:
        """There is room: ``num_pages`` are free."""
        for digest in digests:
            num_pages = self.num_pages(worker, (digest,))
            worker.ledger.charge_adapter(digest, num_pages)
            worker.residency.set_loading(digest, num_pages=num_pages, now_ns=now_ns)
            self._watch(worker, digest, now_ns=now_ns)
            worker.counters.num_loads += 1
            self._emit(
                LoadAdapter(
                    worker_id=worker.worker_id,
                    epoch=worker.info.epoch,
                    digest=digest,
                    num_pages=num_pages,
                    timeout_ns=self._config.load_timeout_ns,
                )
            )
            self._moved(digest)

    def on_device(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        resident = worker.residency.get(digest)
        if resident is not None and resident.tier is Tier.LOADING:
            self._loaded(resident.num_pages, now_ns - resident.since_ns)
            worker.residency.set_device(digest, now_ns=now_ns)
            self._moved(digest)

    def on_eviction_refused(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        if worker.residency.tier(digest) is Tier.EVICTING:
            worker.residency.set_device(digest, now_ns=now_ns)
            self._moved(digest)

    def on_evicted(self, worker: Worker, digest: str) -> bool:
        """False where it cannot be: the adapter is in use."""
        resident = worker.residency.get(digest)
        if resident is None or resident.tier not in (Tier.EVICTING, Tier.DEVICE):
            return True
        if resident.num_users:
            return False
        worker.ledger.release_adapter(digest)
        worker.residency.forget(digest)
        self._moved(digest)
        return True

    def on_failed(self, worker: Worker, digest: str, error: LoraplexError | None, *, now_ns: int) -> bool:
        """Whether those who wait for it on this worker are to be told."""
        resident = worker.residency.get(digest)
        if resident is None or resident.tier is not Tier.LOADING:
            return False
        error = error or Internal(
            f"the adapter version {digest[:12]} could not be loaded", reason="ADAPTER_LOAD_FAILED"
        )
        num_failures = resident.num_failures + 1
        is_final = not isinstance(error, TryLater) or num_failures >= self._config.max_load_attempts
        worker.ledger.release_adapter(digest)
        backoff_ns = self._config.load_backoff_ns << min(num_failures - 1, 30)
        worker.residency.set_failed(
            digest,
            error,
            now_ns=now_ns,
            is_final=is_final,
            backoff_ns=min(backoff_ns, self._config.max_load_backoff_ns),
        )
        self._alarms.add(resident.retry_ns, Wake(worker.worker_id, worker.info.epoch, digest))
        self._moved(digest)
        return is_final

    def _watch(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        limit_ns = 2 * self._config.load_timeout_ns
        self._alarms.add(now_ns + limit_ns + 1, Wake(worker.worker_id, worker.info.epoch, digest))

    def next_alarm_ns(self) -> int | None:
        return self._alarms.next_ns()

    def due(self, *, now_ns: int) -> list[Wake]:
        """Versions to ask ``is_stuck`` and ``allow_again`` about."""
        return self._alarms.pop_due(now_ns, limit=_MAX_WAKES)

    def is_stuck(self, worker: Worker, digest: str, *, now_ns: int) -> bool:
        """Whether its load or eviction has gone unanswered for far too long."""
        resident = worker.residency.get(digest)
        if resident is None or resident.tier not in (Tier.LOADING, Tier.EVICTING):
            return False
        return now_ns - resident.since_ns > 2 * self._config.load_timeout_ns

    def allow_again(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        """The backoff of a failed load may be over."""
        if worker.residency.allow(digest, now_ns=now_ns):
            self._moved(digest)

    def release(self, worker: Worker, digest: str, *, now_ns: int) -> bool:
        """Rid the worker of a version that nobody needs any more. Whether it holds nothing of it."""
        resident = worker.residency.get(digest)
        if resident is None:
            return True
        if resident.tier is Tier.FAILED:
            worker.residency.forget(digest)
            self._moved(digest)
            return True
        if resident.tier is Tier.DEVICE and resident.num_users == 0:
            self.evict(worker, digest, now_ns=now_ns)
        return False


def _unused(worker: Worker, standby: Standby, keep: Collection[str]) -> Iterator[Resident]:
    """The longest unused first, without those to keep."""
    return (resident for resident in worker.residency.idle(standby) if resident.digest not in keep)
