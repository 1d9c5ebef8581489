"""Room that is kept for a sequence which others have overtaken for too long."""

from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.loader import Loader
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.worker import Worker


class Drains:
    """At most one sequence on each worker. Until it is in, those of its class and worse get only what it leaves over.

    So a worker with room for both goes on as before, and one without admits nobody until its running sequences have
    given back enough. An adapter that is one too many for the step closes just one other: the one that is free first.
    """

    def __init__(self, config: CoreConfig, policy: Policy, *, standing: Standing, loader: Loader) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._standing: Final = standing
        self._loader: Final = loader

    def note_overtaken(self, passed: list[Sequence], *, now_ns: int) -> None:
        """Somebody behind them got in."""
        for sequence in passed:
            if sequence.overtaken_ns is None:
                sequence.overtaken_ns = now_ns

    def is_overdue(self, sequence: Sequence, *, now_ns: int) -> bool:
        limit_ns = self._policy.rules.max_overtake_ns
        return limit_ns is not None and sequence.overtaken_ns is not None and now_ns - sequence.overtaken_ns >= limit_ns

    def begin(self, sequence: Sequence, worker: Worker) -> bool:
        """Whether the worker is its home now. One that has a home elsewhere waits there."""
        if worker.drain is not None or sequence.home_id is not None:
            return False
        worker.drain, sequence.home_id = sequence, worker.worker_id
        self.close_excess(sequence, worker)
        return True

    def cancel(self, worker: Worker) -> None:
        """It cannot go there any more."""
        assert worker.drain is not None, f"{worker} drains for nobody"
        worker.drain.home_id = None
        worker.drain = None
        worker.closing.clear()

    def close_excess(self, sequence: Sequence, worker: Worker) -> None:
        """Where the step has as many adapters as it may, no more rows for the one that will be free first."""
        digests, cap = sequence.request.digests, self._config.max_adapters_per_step
        excess = worker.adapters_with(digests) - cap if cap and digests else 0
        if excess <= 0:
            return
        left: dict[str, int] = {}
        for running in worker.sequences.values():
            for digest in running.request.digests:
                left[digest] = max(left.get(digest, 0), running.max_tokens - running.num_output)
        others = sorted((tokens, digest) for digest, tokens in left.items() if digest not in digests)
        worker.closing.update(digest for _, digest in others[:excess])

    def is_closed_to(self, sequence: Sequence, worker: Worker) -> bool:
        """Whether it may not be admitted because its adapter is to become free, or would be one too many."""
        digests, cap = sequence.request.digests, self._config.max_adapters_per_step
        if not cap or not digests or worker.drain is None or not self._owes(sequence, worker):
            return False
        if not worker.closing.isdisjoint(digests):
            return True
        is_new = not worker.residency.are_in_use(digests)
        return is_new and worker.adapters_with({*digests, *worker.drain.request.digests}) > cap

    def pages_owed(self, sequence: Sequence, worker: Worker) -> int:
        """What an admission or a load must leave over."""
        return self.pages_for(worker.drain, worker) if self._owes(sequence, worker) and worker.drain else 0

    def slots_owed(self, sequence: Sequence, worker: Worker) -> int:
        return int(self._owes(sequence, worker))

    def pages_for(self, sequence: Sequence, worker: Worker) -> int:
        """Its missing adapters and its KV."""
        missing = worker.residency.missing(sequence.request.digests)
        num_pages = self._loader.num_pages(worker, missing) if missing else 0
        return num_pages + worker.kv_pages_for(sequence, self._standing.next_grant(sequence))

    def _owes(self, sequence: Sequence, worker: Worker) -> bool:
        drain = worker.drain
        if drain is None or drain is sequence:
            return False
        return self._policy.priority(sequence) >= self._policy.priority(drain)
