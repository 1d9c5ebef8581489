"""Forms the batches: after every turn, who goes on, who gets in, what is loaded, who gives way.

The order of right is the policy's; the mechanics are here:

1. A running sequence whose grant could not be extended comes first on its worker: idle adapters are evicted for it,
   then later ones are preempted. While one starves, the worker admits nobody.
2. A worker for which nothing has changed is not looked at. The others are filled in turn, the least loaded first.
3. Of those who are ready and those who want a load, the first right is tried first. What does not fit is passed over,
   at most ``lookahead`` of each; a missing adapter is asked for at once.
4. One that was overtaken for too long gets a drain, see ``Drains``.
"""

import enum
from collections.abc import Callable, Collection
from typing import Final

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.displacing import Displacing
from loraplex_scheduler.core.drains import Drains
from loraplex_scheduler.core.fair_heap import FairHeap
from loraplex_scheduler.core.fair_share import FairShare, tenant_of
from loraplex_scheduler.core.lane import Lane
from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.loader import Loader, Room
from loraplex_scheduler.core.placement import CLEARLY, Placement
from loraplex_scheduler.core.policy import Policy, Skips
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.residency import Resident
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


class Outcome(enum.Enum):
    """Of a try to get a sequence on."""

    ADMITTED = "ADMITTED"
    LOADING = "LOADING"
    NO_ADAPTER = "NO_ADAPTER"
    """It is not there, or one too many, or there is no room for it."""
    NO_PAGES = "NO_PAGES"


class _Look:
    """What is known in one look at a worker."""

    __slots__ = ("aside", "is_far_ahead", "num_passed", "passed", "too_many")

    def __init__(self) -> None:
        self.aside: list[tuple[Lane, tuple[Key, int, Sequence]]] = []
        """Taken out of their lanes, to be put back."""
        self.passed: list[Sequence] = []
        """Those that did not fit and have not been noted as overtaken."""
        self.num_passed = {True: 0, False: 0}
        """Ready ones, and ones that want a load."""
        self.is_far_ahead = False
        """Whether enough is loaded that nothing runs on yet: who has less right waits for its load."""
        self.too_many: int | None = None
        """The least number of pages that there was no room for: room does not grow during a look."""


class Batcher:
    """One call of ``run`` settles everything that can be settled now.

    Args:
        give_up: ends a sequence that can run nowhere, with the error that says why.
        lateness: why a waiting sequence is not worth its prefill any more, if so.
    """

    def __init__(
        self,
        config: CoreConfig,
        policy: Policy,
        *,
        room: WaitingRoom,
        placement: Placement,
        workers: dict[str, Worker],
        standing: Standing,
        loader: Loader,
        fair_share: FairShare,
        give_up: Callable[[Sequence, LoraplexError], None],
        lateness: Callable[[Sequence], LoraplexError | None],
    ) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._rules: Final = policy.rules
        self._is_strict: Final = policy.rules.max_overtake_ns is None
        """Without drains nobody's adapter is spared for those who wait behind."""
        self._room: Final = room
        self._placement: Final = placement
        self._workers: Final = workers
        self._standing: Final = standing
        self._loader: Final = loader
        self._drains: Final = Drains(config, policy, standing=standing, loader=loader)
        self._displacing: Final = Displacing(config, policy, standing, fair_share)
        self._fair_share: Final = fair_share
        self._give_up: Final = give_up
        self._lateness: Final = lateness
        self.num_considered = 0
        """Waiting sequences that were tried, since the start."""

    def run(self, *, now_ns: int) -> None:
        for worker in self._workers.values():
            if worker.starving:
                self._feed(worker, now_ns=now_ns)
        self._fail_stranded(now_ns=now_ns)
        takers = [worker for worker in self._workers.values() if worker.needs_look and not worker.starving]
        while takers:
            worker = min(takers, key=lambda taker: (taker.load, taker.worker_id))
            if not self._fill(worker, takers, now_ns=now_ns):
                takers.remove(worker)

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
            later = [running for running in worker.sequences.values() if running.right > sequence.right]
            if later:
                self._standing.preempt(max(later, key=lambda running: running.right), now_ns=now_ns)
                continue
            if len(worker.sequences) == 1:
                self._loader.make_room(worker, num_pages, is_forced=True, now_ns=now_ns)
            return

    # --- those that no worker will load for ---

    def _fail_stranded(self, *, now_ns: int) -> None:
        for lane in list(self._room.stranded):
            del self._room.stranded[lane]
            self._fail_lane(lane, now_ns=now_ns)

    def fail_waiting(self, digest: str, *, now_ns: int) -> None:
        """A load has failed for good: those who waited for it and can go nowhere else are told."""
        for lane in self._room.lanes_with(digest):
            self._fail_lane(lane, now_ns=now_ns)

    def _fail_lane(self, lane: Lane, *, now_ns: int) -> None:
        failure = self._failure(lane, now_ns=now_ns)
        if failure is None or failure.error is None:
            return
        for sequence in sorted(lane, key=lambda waiting: waiting.right):
            if sequence.ticket:
                self._give_up(sequence, failure.error)

    def _failure(self, lane: Lane, *, now_ns: int) -> Resident | None:
        """Why no worker will load its adapters, if so."""
        last = None
        for worker_id in sorted(lane.places):
            last = self._workers[worker_id].residency.failure(lane.digests, now_ns=now_ns)
            if last is None or not last.is_final:
                return None
        return last

    # --- one look at one worker ---

    def _fill(self, worker: Worker, takers: list[Worker], *, now_ns: int) -> bool:
        """Take what fits, in the order of right. Whether it stopped only because others are less loaded now."""
        worker.needs_look = False
        look = _Look()
        self._serve_drain(worker, now_ns=now_ns)
        try:
            while self._take_next(worker, takers, look, now_ns=now_ns):
                if any(other.load < worker.load for other in takers):
                    worker.needs_look = True
                    return True
            self._break_deadlock(worker, look, now_ns=now_ns)
            return False
        finally:
            for lane, entry in look.aside:
                lane.put_back(entry)
            for lane in {id(lane): lane for lane, _ in look.aside}.values():
                self._room.put_back(lane)

    def _break_deadlock(self, worker: Worker, look: _Look, *, now_ns: int) -> None:
        """Where nothing runs or moves no room will come by waiting: promises to others go, for the first right."""
        if worker.sequences or worker.residency.num_moving or self._rules.max_overtake_ns is None:
            return
        for sequence in look.passed:
            if self._drains.begin(sequence, worker):
                self._serve_drain(worker, now_ns=now_ns)
                return

    def _take_next(self, worker: Worker, takers: list[Worker], look: _Look, *, now_ns: int) -> bool:
        """Try the next in the order of right. False when there is nothing more to try."""
        pick = self._pick(worker, look)
        if pick is None:
            return False
        lane, is_ready = pick
        entry = lane.pop()
        look.aside.append((lane, entry))
        sequence = entry[2]
        self.num_considered += 1
        error = self._lateness(sequence)
        if error is not None:
            self._give_up(sequence, error)
            return True
        if is_ready and self._placement.better_elsewhere(sequence, worker, takers):
            return True
        outcome = self._try(sequence, worker, look, is_ready=is_ready, now_ns=now_ns)
        return self._settle(sequence, worker, outcome, look, is_ready=is_ready, now_ns=now_ns)

    def _settle(
        self, sequence: Sequence, worker: Worker, outcome: Outcome, look: _Look, *, is_ready: bool, now_ns: int
    ) -> bool:
        """Note who was overtaken. Whether those behind may be tried."""
        skips = self._rules.skips
        if outcome in (Outcome.ADMITTED, Outcome.LOADING):
            self._drains.note_overtaken(look.passed, now_ns=now_ns)
            look.passed.clear()
            return outcome is Outcome.ADMITTED or skips is not Skips.NOTHING
        if skips is Skips.NOTHING or (skips is Skips.ADAPTERS and outcome is Outcome.NO_PAGES):
            return False
        look.num_passed[is_ready] += 1
        look.passed.append(sequence)
        if self._drains.is_overdue(sequence, now_ns=now_ns) and self._drains.begin(sequence, worker):
            self._serve_drain(worker, now_ns=now_ns)
        return True

    def _pick(self, worker: Worker, look: _Look) -> tuple[Lane, bool] | None:
        """The lane of most right among those that could get on, and whether it is ready."""
        board = self._room.board(worker)
        if self._rules.skips is Skips.NOTHING:
            return self._first(board.ready, board.wanted)
        ready = board.ready if self._may_admit(worker, look) else None
        wanted = board.wanted if self._may_load(worker, look) else None
        return self._first(ready, wanted)

    def _may_admit(self, worker: Worker, look: _Look) -> bool:
        if worker.is_prefill_bound or look.num_passed[True] > self._rules.lookahead:
            return False
        return worker.has_slot or self._could_displace(self._room.board(worker).ready, worker)

    def _may_load(self, worker: Worker, look: _Look) -> bool:
        is_last = look.is_far_ahead or look.num_passed[False] > self._rules.lookahead
        return not is_last and self._loader.can_load_more(worker)

    def _first(self, ready: FairHeap | None, wanted: FairHeap | None) -> tuple[Lane, bool] | None:
        first_ready = ready.first() if ready is not None else None
        first_wanted = wanted.first() if wanted is not None else None
        if first_ready is not None and (first_wanted is None or first_ready[0] <= first_wanted[0]):
            return first_ready[1], True
        return None if first_wanted is None else (first_wanted[1], False)

    def _could_displace(self, ready: FairHeap, worker: Worker) -> bool:
        first = ready.first()
        tenant = None if first is None else first[1].account.parent
        return first is not None and tenant is not None and self._displacing.could(first[1].priority, tenant, worker)

    # --- one sequence on one worker ---

    def _try(self, sequence: Sequence, worker: Worker, look: _Look, *, is_ready: bool, now_ns: int) -> Outcome:
        if is_ready:
            return self._try_admit(sequence, worker, look, now_ns=now_ns)
        if self._try_load(sequence, worker, look, now_ns=now_ns):
            return Outcome.LOADING
        if self._rules.skips is Skips.ALL and self._load_elsewhere(sequence, worker, now_ns=now_ns):
            return Outcome.LOADING
        return Outcome.NO_ADAPTER

    def _try_admit(self, sequence: Sequence, worker: Worker, look: _Look, *, now_ns: int) -> Outcome:
        if self._is_one_adapter_too_many(sequence, worker) or self._drains.is_closed_to(sequence, worker):
            return Outcome.NO_ADAPTER
        num_pages = self._kv_pages(sequence, worker) + self._watermark(worker)
        num_pages += self._drains.pages_owed(sequence, worker)
        num_pages += self._reserve(sequence, worker.info.num_pages)
        if self._has_slots_for(sequence, worker) and self._has_room(sequence, worker, num_pages, look, now_ns=now_ns):
            self._standing.admit(sequence, worker, now_ns=now_ns)
            return Outcome.ADMITTED
        if self._displacing.make_room(sequence, worker, num_pages=num_pages, now_ns=now_ns):
            self._standing.admit(sequence, worker, now_ns=now_ns)
            return Outcome.ADMITTED
        return Outcome.NO_PAGES

    def _is_one_adapter_too_many(self, sequence: Sequence, worker: Worker) -> bool:
        digests, cap = sequence.request.digests, self._config.max_adapters_per_step
        return bool(cap and digests) and worker.adapters_with(digests) > cap

    def _has_slots_for(self, sequence: Sequence, worker: Worker) -> bool:
        """One for it, and one for the drain that it must not hold up."""
        if not worker.has_slot:
            return False
        max_sequences = worker.info.max_sequences
        num_owed = self._drains.slots_owed(sequence, worker) + self._reserve(sequence, max_sequences)
        return len(worker.sequences) + num_owed < max_sequences

    def _reserve(self, sequence: Sequence, total: int) -> int:
        """Of slots or pages, what this one's tenant leaves to others."""
        return self._fair_share.reserve(tenant_of(sequence), total) if self._rules.shares else 0

    def _try_load(self, sequence: Sequence, worker: Worker, look: _Look, *, now_ns: int) -> bool:
        """Ask for what is missing if there is room for it and for the sequence after it."""
        missing = worker.residency.missing(sequence.request.digests)
        if not missing or not self._loader.can_load_more(worker):
            return False
        num_pages = self._loader.num_pages(worker, missing)
        if not self._must_load(worker) and self._loader.is_far_ahead(worker, num_pages, sequence.request.digests):
            look.is_far_ahead = True
            return False
        num_pages += self._kv_pages(sequence, worker) + self._drains.pages_owed(sequence, worker)
        if not self._has_room(sequence, worker, num_pages, look, now_ns=now_ns) and not self._displacing.make_room(
            sequence, worker, num_pages=num_pages, now_ns=now_ns
        ):
            return False
        self._loader.load(worker, missing, now_ns=now_ns)
        return True

    def _must_load(self, worker: Worker) -> bool:
        """Whether nothing moves until the first of those who want a load has got it, and no drain will see to that."""
        is_still = not worker.sequences and not worker.residency.num_moving
        return self._rules.skips is Skips.NOTHING or (self._is_strict and is_still)

    def _load_elsewhere(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> bool:
        """Where the chosen worker has no room, one that has some and is clearly less loaded takes the adapters."""
        digests = sequence.request.digests
        if sequence.home_id is not None or len(sequence.request.places) == 1:
            return False
        places = (self._workers[worker_id] for worker_id in sequence.request.places)
        for other in self._placement.order(digests, (p for p in places if p is not worker)):
            if other.load > worker.load - CLEARLY or not self._loader.can_load_more(other):
                continue
            missing = other.residency.missing(digests)
            if not missing or other.residency.is_refused(digests):
                continue
            num_pages = self._loader.num_pages(other, missing) + self._kv_pages(sequence, other)
            if other.ledger.free >= num_pages + self._watermark(other) + self._drains.pages_owed(sequence, other):
                self._loader.load(other, missing, now_ns=now_ns)
                return True
        return False

    def _has_room(self, sequence: Sequence, worker: Worker, num_pages: int, look: _Look, *, now_ns: int) -> bool:
        """Whether the pages are free now; what can be evicted for them is asked for."""
        if look.too_many is not None and num_pages >= look.too_many:
            return False
        keep: Collection[str] = sequence.request.digests
        if worker.drain is not None:
            keep = {*keep, *worker.drain.request.digests}
        room = self._loader.make_room(worker, num_pages, keep=keep, is_forced=self._is_strict, now_ns=now_ns)
        if room is not Room.NOW:
            look.too_many = num_pages
        return room is Room.NOW

    def _kv_pages(self, sequence: Sequence, worker: Worker) -> int:
        return worker.kv_pages_for(sequence, self._standing.next_grant(sequence))

    def _watermark(self, worker: Worker) -> int:
        """Pages left for the running ones to grow, so that an admission does not lead straight to a preemption."""
        return int(self._config.admission_watermark * worker.info.num_pages) if worker.sequences else 0

    # --- overdue sequences ---

    def _serve_drain(self, worker: Worker, *, now_ns: int) -> None:
        """Admit or load the one that the worker drains for if that can be done now, at the cost of any idle adapter."""
        sequence = worker.drain
        if sequence is None:
            return
        digests, residency = sequence.request.digests, worker.residency
        if residency.is_refused(digests) or worker.worker_id not in sequence.request.places:
            self._drains.cancel(worker)
            return
        num_pages = self._drains.pages_for(sequence, worker) + self._watermark(worker)
        is_forced = not self._loader.will_have(worker, num_pages, keep=digests)
        is_now = self._loader.make_room(worker, num_pages, keep=digests, is_forced=is_forced, now_ns=now_ns) is Room.NOW
        missing = residency.missing(digests)
        if missing:
            if is_now and self._loader.can_load_more(worker):
                self._loader.load(worker, missing, now_ns=now_ns)
        elif residency.has_all(digests) and is_now and worker.has_slot:
            if self._is_one_adapter_too_many(sequence, worker):
                self._drains.close_excess(sequence, worker)
                return
            self._standing.admit(sequence, worker, now_ns=now_ns)
