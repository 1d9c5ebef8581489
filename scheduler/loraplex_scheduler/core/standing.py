"""Puts sequences into the workers' standing batches, lets them grow, and takes them out again."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.command import Admit, Command, Grant, Retire
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.estimator import Estimator
from loraplex_scheduler.core.fair_share import FairShare, tenant_of
from loraplex_scheduler.core.lifecycle import State, Transition
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.prefix_affinity import PrefixAffinity
from loraplex_scheduler.core.prefix_namespace import prefix_namespace
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


class Standing:
    """Owns where each sequence is: in the waiting room, on one worker, or nowhere any more."""

    def __init__(
        self,
        config: CoreConfig,
        policy: Policy,
        *,
        room: WaitingRoom,
        workers: dict[str, Worker],
        estimator: Estimator,
        fair_share: FairShare,
        affinity: PrefixAffinity,
        emit: Callable[[Command], None],
    ) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._room: Final = room
        self._estimator: Final = estimator
        self._fair_share: Final = fair_share
        self._affinity: Final = affinity
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
        self._room.remove(sequence)
        sequence.move(Transition.ADMIT)
        self._last_id += 1
        sequence.sequence_id, sequence.worker_id = self._last_id, worker.worker_id
        sequence.grant_tokens = self.next_grant(sequence)
        if worker.residency.hold(request.digests, now_ns=now_ns):
            self._room.touch_digests(request.digests)
        worker.ledger.grow_kv(sequence.sequence_id, worker.kv_pages_for(sequence, sequence.grant_tokens))
        worker.put(sequence, self._policy.priority(sequence))
        sequence.started_ns, sequence.is_fresh = now_ns, True
        self._affinity.note_admitted(sequence, worker)
        self._fair_share.admitted(tenant_of(sequence))
        self._fair_share.earn(len(request.prompt_ids))
        self._note_admission(sequence, worker, now_ns=now_ns)
        namespace = prefix_namespace(self._config, request.tenant, is_base=not request.digests)
        self._emit(_admit(sequence, worker, namespace))

    def _note_admission(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> None:
        if sequence.admitted_ns is not None:
            sequence.num_recomputed += len(sequence.request.prompt_ids) + sequence.num_output
            return
        sequence.admitted_ns = now_ns
        self._estimator.admitted(is_backlogged=len(self._room) > 0, now_ns=now_ns)
        sequence.request.account.charge(self._config.prefill_cost * len(sequence.request.prompt_ids))
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

    def displace(self, sequence: Sequence, *, now_ns: int) -> None:
        """As ``preempt``, for a better class."""
        sequence.displaced_ns = now_ns
        self.preempt(sequence, now_ns=now_ns)

    def preempt(self, sequence: Sequence, *, now_ns: int) -> None:
        """Take the pages back; the sequence goes on later from what it has emitted."""
        worker = self.worker_of(sequence)
        worker.counters.num_preemptions += 1
        self._retire(sequence)
        self._detach(sequence, now_ns=now_ns)
        self._requeue(sequence, Transition.PREEMPT, now_ns=now_ns)

    def refund_prefix(self, sequence: Sequence, num_tokens: int) -> None:
        """The first of its prompt's tokens were not computed: nobody pays for them."""
        self._room.refund(sequence.request.account, self._config.prefill_cost * num_tokens)

    def lose(self, worker: Worker, *, now_ns: int) -> list[Sequence]:
        """The worker is gone: its sequences are queued again. Returns them, first right first."""
        lost = sorted(worker.sequences.values(), key=lambda sequence: sequence.right)
        for sequence in lost:
            self._detach(sequence, now_ns=now_ns)
            self._requeue(sequence, Transition.LOSE_WORKER, now_ns=now_ns)
        if worker.drain is not None:
            worker.drain.home_id, worker.drain = None, None
        return lost

    def end(self, sequence: Sequence, *, now_ns: int, is_worker_done: bool) -> None:
        """Take it out for good.

        Args:
            is_worker_done: the worker ended it and holds nothing of it any more.
        """
        if sequence.state is State.QUEUED:
            self._room.remove(sequence)
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
        worker.take(sequence, self._policy.priority(sequence))
        worker.needs_look = True
        self._fair_share.left(tenant_of(sequence))
        worker.ledger.release_kv(sequence.sequence_id)
        worker.residency.let_go(sequence.request.digests, now_ns=now_ns)
        sequence.sequence_id, sequence.worker_id, sequence.grant_tokens = 0, None, 0

    def _requeue(self, sequence: Sequence, transition: Transition, *, now_ns: int) -> None:
        sequence.move(transition)
        sequence.queued_ns, sequence.overtaken_ns = now_ns, None
        self._room.add(sequence)


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
