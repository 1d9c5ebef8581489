"""Puts sequences into the workers' standing batches, lets them grow, and takes them out again."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.command import Admit, Command, Grant, Retire
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.lifecycle import State, Transition
from loraplex_scheduler.core.prefix_namespace import prefix_namespace
from loraplex_scheduler.core.queue import Queue
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.worker import Worker


class Standing:
    """Owns where each sequence is: in the queue, on one worker, or nowhere any more."""

    def __init__(
        self, config: CoreConfig, queue: Queue, workers: dict[str, Worker], emit: Callable[[Command], None]
    ) -> None:
        self._config: Final = config
        self._queue: Final = queue
        self._workers: Final = workers
        self._emit: Final = emit
        self._last_id = 0

    def worker_of(self, sequence: Sequence) -> Worker:
        assert sequence.worker_id is not None, f"{sequence} is on no worker"
        return self._workers[sequence.worker_id]

    def next_grant(self, sequence: Sequence) -> int:
        """Cumulative output tokens to reserve pages for now."""
        return min(sequence.max_tokens, sequence.num_output + self._config.grant_tokens)

    def admit(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> None:
        """The worker has its adapters, a slot and the pages."""
        request = sequence.request
        self._queue.remove(sequence)
        sequence.move(Transition.ADMIT)
        self._last_id += 1
        sequence.sequence_id, sequence.worker_id = self._last_id, worker.worker_id
        sequence.grant_tokens = self.next_grant(sequence)
        worker.residency.hold(request.digests, now_ns=now_ns)
        worker.ledger.grow_kv(sequence.sequence_id, worker.kv_pages_for(sequence, sequence.grant_tokens))
        worker.sequences[sequence.sequence_id] = sequence
        self._note_admission(sequence, worker, now_ns=now_ns)
        namespace = prefix_namespace(self._config, request.tenant, is_base=not request.digests)
        self._emit(_admit(sequence, worker, namespace))

    def _note_admission(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> None:
        if sequence.admitted_ns is not None:
            sequence.num_recomputed += len(sequence.request.prompt_ids) + sequence.num_output
            return
        sequence.admitted_ns = now_ns
        device_ns = worker.residency.device_ns(sequence.request.digests)
        sequence.load_ns = max(0, device_ns - sequence.request.accepted_ns)

    def needs_grant(self, sequence: Sequence) -> bool:
        left = sequence.grant_tokens - sequence.num_output
        return left < self._config.grant_low_tokens and sequence.grant_tokens < sequence.max_tokens

    def pages_to_extend(self, sequence: Sequence) -> int:
        worker = self.worker_of(sequence)
        held = worker.ledger.kv_pages(sequence.sequence_id)
        return worker.kv_pages_for(sequence, self.next_grant(sequence)) - held

    def extend(self, sequence: Sequence) -> bool:
        """Extend the grant if the pages are there; else the sequence starves until they are."""
        worker = self.worker_of(sequence)
        num_pages = self.pages_to_extend(sequence)
        if num_pages > worker.ledger.free:
            worker.starving.add(sequence.sequence_id)
            return False
        worker.starving.discard(sequence.sequence_id)
        worker.ledger.grow_kv(sequence.sequence_id, num_pages)
        sequence.grant_tokens = self.next_grant(sequence)
        self._emit(
            Grant(
                worker_id=worker.worker_id,
                epoch=worker.info.epoch,
                sequence_id=sequence.sequence_id,
                grant_tokens=sequence.grant_tokens,
            )
        )
        return True

    def preempt(self, sequence: Sequence, *, now_ns: int) -> None:
        """Take the pages back; the sequence goes on later from what it has emitted."""
        worker = self.worker_of(sequence)
        worker.counters.num_preemptions += 1
        self._retire(sequence)
        self._detach(sequence, now_ns=now_ns)
        self._requeue(sequence, Transition.PREEMPT, now_ns=now_ns)

    def lose(self, worker: Worker, *, now_ns: int) -> list[Sequence]:
        """The worker is gone: its sequences are queued again. Returns them, first right first."""
        lost = sorted(worker.sequences.values(), key=lambda sequence: sequence.right)
        for sequence in lost:
            self._detach(sequence, now_ns=now_ns)
            self._requeue(sequence, Transition.LOSE_WORKER, now_ns=now_ns)
        for sequence in self._queue:
            if sequence.home_id == worker.worker_id:
                sequence.home_id = None
        return lost

    def end(self, sequence: Sequence, *, now_ns: int, is_worker_done: bool) -> None:
        """Take it out for good.

        Args:
            is_worker_done: the worker ended it and holds nothing of it any more.
        """
        if sequence.state is State.QUEUED:
            self._queue.remove(sequence)
        elif sequence.state is State.ADMITTED:
            if not is_worker_done:
                self._retire(sequence)
            self._detach(sequence, now_ns=now_ns)
        sequence.move(Transition.END)

    def _retire(self, sequence: Sequence) -> None:
        worker = self.worker_of(sequence)
        self._emit(Retire(worker_id=worker.worker_id, epoch=worker.info.epoch, sequence_id=sequence.sequence_id))

    def _detach(self, sequence: Sequence, *, now_ns: int) -> None:
        worker = self.worker_of(sequence)
        del worker.sequences[sequence.sequence_id]
        worker.starving.discard(sequence.sequence_id)
        worker.ledger.release_kv(sequence.sequence_id)
        worker.residency.let_go(sequence.request.digests, now_ns=now_ns)
        sequence.sequence_id, sequence.worker_id, sequence.grant_tokens = 0, None, 0

    def _requeue(self, sequence: Sequence, transition: Transition, *, now_ns: int) -> None:
        sequence.move(transition)
        sequence.queued_ns, sequence.is_overdue, sequence.home_id = now_ns, False, None
        self._queue.add(sequence)


def _admit(sequence: Sequence, worker: Worker, namespace: bytes) -> Admit:
    request = sequence.request
    return Admit(
        worker_id=worker.worker_id,
        epoch=worker.info.epoch,
        sequence_id=sequence.sequence_id,
        prompt_ids=request.prompt_ids,
        emitted_ids=tuple(sequence.emitted),
        adapters=request.weights,
        sampling=sequence.sampling(),
        stop_token_ids=request.stop_token_ids,
        max_tokens=sequence.max_tokens,
        min_tokens=request.min_tokens,
        grant_tokens=sequence.grant_tokens,
        prefix_namespace=namespace,
    )
