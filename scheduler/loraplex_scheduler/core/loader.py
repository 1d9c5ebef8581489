"""Moves adapters on and off the workers, and makes room on them by doing so."""

import enum
from collections.abc import Callable, Collection
from typing import Final

from loraplex_contract.errors import Internal, LoraplexError, TryLater
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.command import Command, EvictAdapter, LoadAdapter
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.residency import Tier
from loraplex_scheduler.core.worker import Worker


class Room(enum.Enum):
    """What became of a wish for pages."""

    NOW = "NOW"
    COMING = "COMING"
    """When evictions that were asked for are done."""
    NONE = "NONE"


class Loader:
    """Asks for loads and evictions, and takes the answers."""

    def __init__(self, config: CoreConfig, catalog: Catalog, emit: Callable[[Command], None]) -> None:
        self._config: Final = config
        self._catalog: Final = catalog
        self._emit: Final = emit

    def make_room(
        self, worker: Worker, num_pages: int, *, keep: Collection[str] = (), is_forced: bool, now_ns: int
    ) -> Room:
        """See that ``num_pages`` are free, evicting idle adapters, the longest unused first, if that is enough.

        Args:
            keep: digests that stay, whatever their use.
            is_forced: evict also what waiting requests have a lease on.
        """
        if worker.ledger.free >= num_pages:
            return Room.NOW
        wanted = num_pages - worker.ledger.free - worker.pages_on_the_way()
        if wanted <= 0:
            return Room.COMING
        idle = [resident.digest for resident in worker.residency.evictable(keep=keep)]
        idle.sort(key=self._is_leased)
        if not is_forced:
            idle = [digest for digest in idle if not self._is_leased(digest)]
        if sum(worker.ledger.adapter_pages(digest) for digest in idle) < wanted:
            return Room.NONE
        for digest in idle:
            wanted -= worker.ledger.adapter_pages(digest)
            self.evict(worker, digest, now_ns=now_ns)
            if wanted <= 0:
                break
        return Room.COMING

    def evict(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        """The pages stay charged until the worker has answered."""
        worker.residency.set_evicting(digest, now_ns=now_ns)
        worker.counters.num_evictions += 1
        self._emit(EvictAdapter(worker_id=worker.worker_id, epoch=worker.info.epoch, digest=digest))

    def num_pages(self, worker: Worker, digests: Collection[str]) -> int:
        return sum(worker.adapter_pages_for(self._catalog.num_parameters(digest)) for digest in digests)

    def can_load_more(self, worker: Worker) -> bool:
        return worker.residency.num_loading < self._config.max_loads_in_flight

    def load(self, worker: Worker, digests: Collection[str], *, now_ns: int) -> None:
        """There is room: ``num_pages`` are free."""
        for digest in digests:
            num_pages = self.num_pages(worker, (digest,))
            worker.ledger.charge_adapter(digest, num_pages)
            worker.residency.set_loading(digest, now_ns=now_ns)
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

    def on_device(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        if worker.residency.tier(digest) is Tier.LOADING:
            worker.residency.set_device(digest, now_ns=now_ns)

    def on_eviction_refused(self, worker: Worker, digest: str, *, now_ns: int) -> None:
        if worker.residency.tier(digest) is Tier.EVICTING:
            worker.residency.set_device(digest, now_ns=now_ns)

    def on_evicted(self, worker: Worker, digest: str) -> bool:
        """False where it cannot be: the adapter is in use."""
        resident = worker.residency.get(digest)
        if resident is None or resident.tier not in (Tier.EVICTING, Tier.DEVICE):
            return True
        if resident.num_users:
            return False
        worker.ledger.release_adapter(digest)
        worker.residency.forget(digest)
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
        return is_final

    def is_stuck(self, worker: Worker, *, now_ns: int) -> bool:
        """Whether a load or an eviction has gone unanswered for far too long."""
        limit_ns = 2 * self._config.load_timeout_ns
        moving = (r for r in worker.residency if r.tier in (Tier.LOADING, Tier.EVICTING))
        return any(now_ns - resident.since_ns > limit_ns for resident in moving)

    def release(self, worker: Worker, digest: str, *, now_ns: int) -> bool:
        """Rid the worker of a version that nobody needs any more. Whether it holds nothing of it."""
        resident = worker.residency.get(digest)
        if resident is None:
            return True
        if resident.tier is Tier.FAILED:
            worker.residency.forget(digest)
            return True
        if resident.tier is Tier.DEVICE and resident.num_users == 0:
            self.evict(worker, digest, now_ns=now_ns)
        return False

    def _is_leased(self, digest: str) -> bool:
        return self._catalog.num_leases(digest) > 0
