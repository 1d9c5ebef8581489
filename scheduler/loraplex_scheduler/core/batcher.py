"""Forms the batches: after every turn, who goes on, who gets in, what is loaded, who gives way.

The order of right is the policy's; the mechanics are here:

1. A running sequence whose grant could not be extended comes first on its worker: idle adapters are evicted for it,
   then sequences of less right are preempted. While one starves, the worker admits nobody.
2. Waiting sequences are taken in the order of their right. One that does not fit, or whose adapter is not there, is
   skipped and counts against nothing; a missing adapter is asked for at once.
3. One that is overdue closes its worker to everybody of less right until it is in.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Final

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.lifecycle import State
from loraplex_scheduler.core.loader import Loader, Room
from loraplex_scheduler.core.placement import rank
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.queue import Queue
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.residency import Resident
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.worker import Worker


class Batcher:
    """One call of ``run`` settles everything that can be settled now.

    Args:
        give_up: ends a sequence that can run nowhere, with the error that says why.
    """

    def __init__(
        self,
        config: CoreConfig,
        policy: Policy,
        *,
        queue: Queue,
        workers: dict[str, Worker],
        standing: Standing,
        loader: Loader,
        give_up: Callable[[Sequence, LoraplexError], None],
    ) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._queue: Final = queue
        self._workers: Final = workers
        self._standing: Final = standing
        self._loader: Final = loader
        self._give_up: Final = give_up
        self._too_many: dict[str, int] = {}
        """The least number of pages that each worker had no room for, in this run: room does not grow during it."""
        self._owed: set[str] = set()
        """Adapters of the overdue sequences seen in this run. Nobody of less right evicts them: else two overdue
        sequences that wait for loads would evict each other's adapters for ever."""

    def run(self, *, now_ns: int) -> None:
        for worker in self._workers.values():
            if worker.starving:
                self._feed(worker, now_ns=now_ns)
        self._too_many.clear()
        self._owed.clear()
        takers = [worker for worker in self._workers.values() if not worker.starving and self._can_take(worker)]
        for sequence in self._policy.candidates(self._queue, now_ns=now_ns):
            if not takers:
                return
            if sequence.state is State.QUEUED:
                self._consider(sequence, takers, now_ns=now_ns)
                if sequence.is_overdue:
                    self._owed.update(sequence.request.digests)

    # --- running sequences ---

    def _feed(self, worker: Worker, *, now_ns: int) -> None:
        starving = sorted((worker.sequences[id] for id in worker.starving), key=lambda sequence: sequence.right)
        for sequence in starving:
            if sequence.sequence_id in worker.starving:
                self._feed_one(sequence, worker, now_ns=now_ns)

    def _feed_one(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> None:
        while not self._standing.extend(sequence):
            num_pages = self._standing.pages_to_extend(sequence)
            if self._loader.make_room(worker, num_pages, is_forced=False, now_ns=now_ns) is Room.COMING:
                return
            victim = self._policy.victim(worker.sequences.values(), below=sequence)
            if victim is not None:
                self._standing.preempt(victim, now_ns=now_ns)
                continue
            if len(worker.sequences) == 1:
                self._loader.make_room(worker, num_pages, is_forced=True, now_ns=now_ns)
            return

    # --- waiting sequences ---

    def _can_take(self, worker: Worker) -> bool:
        """Whether anything at all could be admitted to the worker or loaded on it."""
        has_pages = worker.ledger.free > 0 or worker.residency.num_idle > 0
        return has_pages and (self._has_slot(worker) or self._loader.can_load_more(worker))

    def _has_slot(self, worker: Worker) -> bool:
        return len(worker.sequences) < worker.info.max_sequences

    def _consider(self, sequence: Sequence, takers: list[Worker], *, now_ns: int) -> None:
        """Admit it, ask for its adapters, or leave it; takers that can take no more leave the list."""
        failure = self._failure(sequence, now_ns=now_ns)
        if failure is not None:
            assert failure.error is not None
            self._give_up(sequence, failure.error)
            return
        places = [worker for worker in takers if self._is_place(sequence, worker, now_ns=now_ns)]
        ranked = rank(sequence, places)
        for worker in ranked:
            if self._admit_or_load(sequence, worker, now_ns=now_ns):
                if not self._can_take(worker):
                    takers.remove(worker)
                return
            if worker.residency.is_moving(sequence.request.digests):
                break
        if ranked and self._is_overdue(sequence, ranked[0], now_ns=now_ns):
            self._drain(sequence, ranked[0], takers, now_ns=now_ns)

    def _is_place(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> bool:
        request = sequence.request
        if worker.worker_id not in request.places:
            return False
        return not request.digests or worker.residency.failure(request.digests, now_ns=now_ns) is None

    def _failure(self, sequence: Sequence, *, now_ns: int) -> Resident | None:
        """Why no worker will load its adapters, if so."""
        request, last = sequence.request, None
        if not request.digests:
            return None
        for worker_id in request.places:
            last = self._workers[worker_id].residency.failure(request.digests, now_ns=now_ns)
            if last is None or not last.is_final:
                return None
        return last

    def fail_waiting(self, digest: str, *, now_ns: int) -> None:
        """A load has failed for good: those who waited for it and can go nowhere else are told."""
        for sequence in self._queue:
            if digest in sequence.request.digests:
                failure = self._failure(sequence, now_ns=now_ns)
                if failure is not None and failure.error is not None:
                    self._give_up(sequence, failure.error)

    def _admit_or_load(self, sequence: Sequence, worker: Worker, *, now_ns: int, is_forced: bool = False) -> bool:
        digests = sequence.request.digests
        if worker.residency.has_all(digests):
            return self._try_admit(sequence, worker, now_ns=now_ns, is_forced=is_forced)
        missing = worker.residency.missing(digests)
        return self._try_load(sequence, worker, missing, now_ns=now_ns, is_forced=is_forced)

    def _try_admit(self, sequence: Sequence, worker: Worker, *, now_ns: int, is_forced: bool) -> bool:
        digests, cap = sequence.request.digests, self._config.max_adapters_per_step
        if not self._has_slot(worker) or (cap and digests and worker.adapters_with(digests) > cap):
            return False
        num_pages = self._kv_pages(sequence, worker) + self._watermark(worker)
        if not self._has_room(worker, num_pages, keep=digests, is_forced=is_forced, now_ns=now_ns):
            return False
        self._standing.admit(sequence, worker, now_ns=now_ns)
        return True

    def _try_load(
        self, sequence: Sequence, worker: Worker, missing: SequenceOf[str], *, now_ns: int, is_forced: bool
    ) -> bool:
        """Ask for what is missing if there is room for it and for the sequence after it."""
        digests = sequence.request.digests
        if not missing or not self._loader.can_load_more(worker):
            return False
        num_pages = self._loader.num_pages(worker, missing) + self._kv_pages(sequence, worker)
        if not self._has_room(worker, num_pages, keep=digests, is_forced=is_forced, now_ns=now_ns):
            return False
        self._loader.load(worker, missing, now_ns=now_ns)
        return True

    def _has_room(self, worker: Worker, num_pages: int, *, keep: tuple[str, ...], is_forced: bool, now_ns: int) -> bool:
        """Whether the pages are free now; what can be evicted for them is asked for."""
        if not is_forced and num_pages >= self._too_many.get(worker.worker_id, num_pages + 1):
            return False
        room = self._loader.make_room(
            worker, num_pages, keep=self._owed.union(keep), is_forced=is_forced, now_ns=now_ns
        )
        if room is not Room.NOW and not is_forced:
            self._too_many[worker.worker_id] = num_pages
        return room is Room.NOW

    def _kv_pages(self, sequence: Sequence, worker: Worker) -> int:
        return worker.kv_pages_for(sequence, self._standing.next_grant(sequence))

    def _watermark(self, worker: Worker) -> int:
        """Pages left for the running ones to grow, so that an admission does not lead straight to a preemption."""
        return int(self._config.admission_watermark * worker.info.num_pages) if worker.sequences else 0

    # --- overdue sequences ---

    def _is_overdue(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> bool:
        digests = sequence.request.digests
        if worker.residency.is_moving(digests):
            return False
        if not sequence.is_overdue:
            eligible_ns = max(sequence.queued_ns, worker.residency.device_ns(digests))
            sequence.is_overdue = self._policy.is_overdue(eligible_ns=eligible_ns, now_ns=now_ns)
        return sequence.is_overdue

    def _drain(self, sequence: Sequence, worker: Worker, takers: list[Worker], *, now_ns: int) -> None:
        """Close the worker to everybody after ``sequence``, and free what else is idle for it.

        One whose home another one has closed waits for that one; it does not close a second worker.
        """
        if sequence.home_id is not None and sequence.home_id != worker.worker_id:
            return
        sequence.home_id = worker.worker_id
        if not self._admit_or_load(sequence, worker, now_ns=now_ns, is_forced=True) or not self._can_take(worker):
            takers.remove(worker)
