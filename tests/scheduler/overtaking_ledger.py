"""Who got in before whom, by books of its own: right is the policy's, room is the pages' and slots' that are left."""

import dataclasses
from typing import Any

from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.worker import Worker


@dataclasses.dataclass
class Snapshot:
    """Of everybody that waits, before or after a run of the batcher."""

    least: dict[tuple[Sequence, str], tuple[Any, ...]]
    """Keys by sequence and worker where it could get on, as if its adapters had no rows there."""
    most: dict[tuple[Sequence, str], tuple[Any, ...]]
    """The same as if they had some: that may change back and forth while a run admits."""
    running: dict[str, set[int]]
    drains: set[Sequence | None]
    """Room was kept for these: another may have to wait for the one that was first."""


class OvertakingLedger:
    """Watches each run of the batcher. AssertionError: one that was overtaken for too long is overtaken again."""

    def __init__(self, core: SchedulerCore) -> None:
        self._core = core
        self._since: dict[tuple[int, int, int], int] = {}
        self.now_ns = 0
        self.longest_ns = 0
        run = core._batcher.run

        def watched(*, now_ns: int) -> None:
            before = self._snapshot()
            run(now_ns=now_ns)
            self._compare(before, self._snapshot())

        core._batcher.run = watched  # type: ignore[method-assign]

    def _snapshot(self) -> Snapshot:
        workers = self._core._workers
        running = {id: set(worker.sequences) for id, worker in workers.items()}
        snapshot = Snapshot({}, {}, running, {worker.drain for worker in workers.values()})
        for sequence in self._core._room:
            for worker in self._core._workers.values():
                board = self._core._room.board(worker)
                lane = sequence.lane
                if lane is not None and (lane in board.ready or lane in board.wanted):
                    key = (sequence, worker.worker_id)
                    snapshot.least[key] = self._right(sequence, is_in_batch=False)
                    snapshot.most[key] = self._right(sequence, is_in_batch=True)
        return snapshot

    def _right(self, sequence: Sequence, *, is_in_batch: bool) -> tuple[Any, ...]:
        lane, policy = sequence.lane, self._core._policy
        assert lane is not None
        above = lane.account.parent
        assert above is not None
        best = policy.lane_key(policy.sequence_key(sequence), lane.account, is_in_batch=is_in_batch)
        return policy.shelf_key(lane.priority, above, best)

    def _compare(self, before: Snapshot, after: Snapshot) -> None:
        """Rights change while a run admits: only who had more right all the time, come what may, was overtaken."""
        for worker in self._core._workers.values():
            admitted = [worker.sequences[id] for id in set(worker.sequences) - before.running[worker.worker_id]]
            for sequence, worker_id in after.least:
                if worker_id == worker.worker_id and (sequence, worker_id) in before.least:
                    greatest = max(before.least[sequence, worker_id], after.least[sequence, worker_id])
                    for other in admitted:
                        theirs = before.most.get((other, worker_id))
                        if theirs is not None and greatest < theirs and other not in before.drains:
                            self._overtaken(sequence, other, worker)

    def _overtaken(self, sequence: Sequence, other: Sequence, worker: Worker) -> None:
        key = (sequence.request.arrival, sequence.index, sequence.queued_ns)
        since_ns = self._since.setdefault(key, self.now_ns)
        overtaken_ns = self.now_ns - since_ns
        if sequence.home_id in (None, worker.worker_id) and worker.drain in (None, sequence):
            self.longest_ns = max(self.longest_ns, overtaken_ns)
            is_late = overtaken_ns >= self._core.config.max_overtake_ns
            assert not is_late or self._has_room(sequence, worker), f"{other} overtook {sequence} past the bound"

    def _has_room(self, sequence: Sequence, worker: Worker) -> bool:
        """Whether the other took nothing that it needs."""
        missing = worker.residency.missing(sequence.request.digests)
        num_pages = worker.kv_pages_for(sequence, self._core._standing.next_grant(sequence))
        num_pages += self._core._loader.num_pages(worker, missing)
        return worker.ledger.free >= num_pages and worker.has_slot
