"""Sequences that wait: in lanes, and each lane filed on the workers where it is ready or wants its adapters loaded.

A sequence that comes, goes or changes its mind costs the logarithm of what waits. Nothing here is ever scanned but when
a worker comes or goes.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from loraplex_scheduler.core.account import Account, Accounts
from loraplex_scheduler.core.alarms import Alarms
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.fair_heap import FairHeap
from loraplex_scheduler.core.lane import Lane, LaneKey
from loraplex_scheduler.core.placement import Placement
from loraplex_scheduler.core.policy import Policy, Skips
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.worker import Worker

_MAX_LANE_ALARMS: Final = 64
"""Lanes that get a second look at their replicas in one turn."""


class Board:
    """The lanes that can go to one worker."""

    def __init__(self, policy: Policy, worker: Worker) -> None:
        def is_in_batch(lane: Lane) -> bool:
            return worker.residency.are_in_use(lane.digests)

        self.ready: Final = FairHeap(policy, is_in_batch)
        """All their adapters are on the device."""
        self.wanted: Final = FairHeap(policy, is_in_batch)
        """Their adapters should be loaded here; under a policy that blocks, also those that are being loaded."""


class WaitingRoom:
    """Owns every queued sequence, and where each could go."""

    def __init__(
        self,
        config: CoreConfig,
        policy: Policy,
        *,
        accounts: Accounts,
        placement: Placement,
        workers: Mapping[str, Worker],
    ) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._accounts: Final = accounts
        self._placement: Final = placement
        self._workers: Final = workers
        self._blocks: Final = policy.rules.skips is Skips.NOTHING
        self._lanes: dict[LaneKey, Lane] = {}
        self._by_digest: dict[str, dict[Lane, None]] = {}
        self._by_account: dict[Account, dict[Lane, None]] = {}
        self._boards: dict[str, Board] = {}
        self._homeless: dict[Lane, None] = {}
        self._by_class: dict[int, int] = {}
        self._alarms: Final = Alarms[Lane]()
        self.stranded: Final[dict[Lane, None]] = {}
        """Lanes that no worker would load for now, to be looked at by the batcher."""
        self.waited: Final[dict[str, int]] = {}
        """Digests that somebody waits for, with the number of lanes; the workers' books read it."""
        self._num_waiting = 0
        self._last_ticket = 0
        self._new: dict[int, int] = {}
        """Number of a request to how many of its sequences wait for their first admission."""

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, sequence: Sequence) -> bool:
        return bool(sequence.ticket)

    def __iter__(self) -> Iterator[Sequence]:
        """Over a snapshot, in the order of arrival and class. Sorts them all: not for a turn's way."""
        everybody = [sequence for lane in self._lanes.values() for sequence in lane]
        return iter(sorted(everybody, key=lambda sequence: sequence.right))

    @property
    def num_new_requests(self) -> int:
        """Requests with a sequence that was never admitted."""
        return len(self._new)

    def num_up_to_class(self, priority: int) -> int:
        """Waiting sequences that are of this class or better."""
        return sum(number for other, number in self._by_class.items() if other <= priority)

    # --- sequences ---

    def add(self, sequence: Sequence) -> None:
        assert not sequence.ticket, f"{sequence} is queued already"
        request = sequence.request
        lane = self._lane(sequence)
        self._last_ticket += 1
        sequence.ticket = self._last_ticket
        sequence.lane = lane
        self._accounts.begin_wait(lane.account)
        lane.add(sequence, self._policy.sequence_key(sequence))
        self._num_waiting += 1
        self._by_class[lane.priority] = self._by_class.get(lane.priority, 0) + 1
        if sequence.admitted_ns is None:
            self._new[request.arrival] = self._new.get(request.arrival, 0) + 1
        if lane.num_waiting == 1:
            self._open(lane, now_ns=sequence.queued_ns)
        else:
            self.touch(lane)

    def remove(self, sequence: Sequence) -> None:
        """Before its first admission is noted."""
        assert sequence.ticket, f"{sequence} is not queued"
        lane, arrival = sequence.lane, sequence.request.arrival
        assert lane is not None
        sequence.ticket, sequence.lane = 0, None
        lane.remove_one()
        self._accounts.end_wait(lane.account)
        self._num_waiting -= 1
        self._by_class[lane.priority] -= 1
        if not self._by_class[lane.priority]:
            del self._by_class[lane.priority]
        if sequence.admitted_ns is None:
            self._new[arrival] -= 1
            if self._new[arrival] == 0:
                del self._new[arrival]
        if sequence.home_id is not None:
            self._leave_home(sequence)
        if lane.num_waiting == 0:
            self._close(lane)
        else:
            self.touch(lane)

    def _leave_home(self, sequence: Sequence) -> None:
        worker = self._workers.get(sequence.home_id or "")
        sequence.home_id = None
        if worker is not None and worker.drain is sequence:
            worker.drain, worker.needs_look = None, True
            worker.closing.clear()

    # --- lanes ---

    def _lane(self, sequence: Sequence) -> Lane:
        request = sequence.request
        key = LaneKey(self._policy.priority(sequence), request.tenant, request.digests, request.places)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, request.account)
        return lane

    def _open(self, lane: Lane, *, now_ns: int) -> None:
        self._by_account.setdefault(lane.account, {})[lane] = None
        for digest in lane.digests:
            self._by_digest.setdefault(digest, {})[lane] = None
            self.waited[digest] = self.waited.get(digest, 0) + 1
            if self.waited[digest] == 1:
                self._reclassify(digest)
        if lane.digests and len(lane.places) > 1:
            self._alarms.add(now_ns + self._config.replica_wait_ns, lane)
        self.refile(lane)

    def _close(self, lane: Lane) -> None:
        del self._lanes[lane.key], self._by_account[lane.account][lane]
        if not self._by_account[lane.account]:
            del self._by_account[lane.account]
        for worker_id in lane.places:
            board = self._boards.get(worker_id)
            if board is not None:
                board.ready.withdraw(lane)
                board.wanted.withdraw(lane)
        self._homeless.pop(lane, None)
        self.stranded.pop(lane, None)
        for digest in lane.digests:
            del self._by_digest[digest][lane]
            self.waited[digest] -= 1
            if not self.waited[digest]:
                del self.waited[digest], self._by_digest[digest]
                self._reclassify(digest)

    def _reclassify(self, digest: str) -> None:
        for worker in self._workers.values():
            worker.residency.reclassify(digest)

    def lanes_with(self, digest: str) -> list[Lane]:
        return list(self._by_digest.get(digest, ()))

    def homeless(self) -> list[Sequence]:
        """Those that fit on no worker that there is."""
        return [sequence for lane in list(self._homeless) for sequence in lane]

    def touch(self, lane: Lane) -> None:
        """Its first sequence is another one, or its account fell: it may have more right than before."""
        for worker_id in lane.places:
            board, worker = self._boards.get(worker_id), self._workers.get(worker_id)
            if board is None or worker is None:
                continue
            for heap in (board.ready, board.wanted):
                if lane in heap:
                    heap.touch(lane)
                    worker.needs_look = True

    def put_back(self, lane: Lane) -> None:
        """Sequences that were taken out of the lane for a look are in it again."""
        for worker_id in lane.places if lane.num_waiting else ():
            board = self._boards[worker_id]
            for heap in (board.ready, board.wanted):
                if lane in heap:
                    heap.touch(lane)

    def right_of(self, digest: str) -> tuple[float, ...]:
        """Of the best of those who wait for a version: class, and service of its tenant and its adapters."""
        keys = [
            (lane.priority, 0.0 if lane.account.parent is None else lane.account.parent.service, lane.account.service)
            for lane in self._by_digest.get(digest, ())
        ]
        return min(keys, default=(0.0, 0.0, 0.0))

    def touch_digests(self, digests: tuple[str, ...]) -> None:
        """Adapters came into use or a counter fell: lanes on them may have more right than before."""
        for digest in digests:
            for lane in self._by_digest.get(digest, ()):
                self.touch(lane)

    def moved(self, digest: str) -> None:
        """An adapter came to, left, or failed to come to some worker."""
        for lane in self.lanes_with(digest):
            self.refile(lane)

    def refile(self, lane: Lane) -> None:
        """Find out where it is ready and where its adapters should be loaded."""
        num_homes, others = 0, []
        for worker_id in lane.places:
            worker, board = self._workers[worker_id], self._boards[worker_id]
            is_ready = worker.residency.has_all(lane.digests)
            is_missing = not is_ready and bool(worker.residency.missing(lane.digests))
            num_homes += not is_missing
            self._set(board.ready, lane, worker, is_filed=is_ready)
            if is_missing and not worker.residency.is_refused(lane.digests):
                others.append(worker)
            else:
                is_blocking = self._blocks and not is_ready and not is_missing
                self._set(board.wanted, lane, worker, is_filed=is_blocking)
        number = self._placement.num_replicas(lane.digests) - num_homes
        chosen = self._placement.next_homes(lane.digests, others, number) if others and number > 0 else []
        for worker in others:
            self._set(self._boards[worker.worker_id].wanted, lane, worker, is_filed=worker in chosen)
        if not lane.places:
            self._homeless[lane] = None
        elif not num_homes and not chosen:
            self.stranded[lane] = None

    def _set(self, heap: FairHeap, lane: Lane, worker: Worker, *, is_filed: bool) -> None:
        if is_filed:
            worker.needs_look = True
            heap.file(lane)
        elif lane in heap:
            heap.withdraw(lane)

    def refund(self, account: Account, cost: float) -> None:
        """Its counter falls, and with that its lanes may have more right."""
        self._accounts.refund(account, cost)
        if account.num_waiting:
            for lane in self._by_account[account]:
                self.touch(lane)

    # --- workers ---

    def board(self, worker: Worker) -> Board:
        return self._boards[worker.worker_id]

    def rebuild(self) -> None:
        """Workers came or went, and with them the places of everybody."""
        everybody = list(self)
        self._boards = {worker_id: Board(self._policy, worker) for worker_id, worker in self._workers.items()}
        for lane in list(self._lanes.values()):
            self._close(lane)
        for sequence in everybody:
            lane = sequence.lane = self._lane(sequence)
            lane.add(sequence, self._policy.sequence_key(sequence))
            if lane.num_waiting == 1:
                self._open(lane, now_ns=sequence.queued_ns)
        for lane in self._lanes.values():
            self.touch(lane)

    # --- time ---

    def next_alarm_ns(self) -> int | None:
        return self._alarms.next_ns()

    def consider_replicas(self, *, now_ns: int) -> None:
        """Lanes whose first sequence has waited for long may get one more worker."""
        for lane in self._alarms.pop_due(now_ns, limit=_MAX_LANE_ALARMS):
            if self._lanes.get(lane.key) is not lane:
                self._placement.shrink(lane.digests, now_ns=now_ns)
                continue
            self._alarms.add(now_ns + self._config.replica_wait_ns, lane)
            workers = [self._workers[worker_id] for worker_id in lane.places]
            homes = [w for w in workers if not w.residency.missing(lane.digests)]
            if self._placement.grow(lane.digests, homes, [w for w in workers if w not in homes], now_ns=now_ns):
                self.refile(lane)

    def check(self) -> None:
        """Assert that lanes, boards and counts tell the same story. O(everything)."""
        assert self._num_waiting == sum(lane.num_waiting for lane in self._lanes.values()), "waiting sequences"
        assert sum(self._by_class.values()) == self._num_waiting
        for key, lane in self._lanes.items():
            waiting = list(lane)
            assert len(waiting) == lane.num_waiting > 0, f"{lane} holds {len(waiting)}"
            assert all(s.lane is lane and s.request.places == key.places for s in waiting), f"{lane} is not theirs"
            for worker_id in lane.places:
                is_ready = self._workers[worker_id].residency.has_all(lane.digests)
                assert (lane in self._boards[worker_id].ready) == is_ready, f"{lane} on {worker_id}"
        for digest, number in self.waited.items():
            assert number == len(self._by_digest[digest]) > 0, f"lanes that wait for {digest}"
