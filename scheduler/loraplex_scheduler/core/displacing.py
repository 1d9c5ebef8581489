"""A better priority class takes the place of a running worse one."""

from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.worker import Worker


class Displacing:
    """Takes as few as needed, or nobody: the worst class first, of it the most served tenant's latest.

    A sequence that has given way once does so again only after it ran for the hysteresis, so that a stream of better
    ones cannot make it start over and over without getting on.
    """

    def __init__(self, config: CoreConfig, policy: Policy, standing: Standing) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._standing: Final = standing

    def could(self, priority: int, worker: Worker) -> bool:
        """Whether anybody of a worse class than this runs there."""
        worst = worker.worst_class
        return self._policy.rules.preempts and worst is not None and worst > priority

    def make_room(self, sequence: Sequence, worker: Worker, *, num_pages: int, now_ns: int) -> bool:
        """See that a slot and ``num_pages`` are free by preempting; nobody is preempted in vain."""
        if not self.could(self._policy.priority(sequence), worker):
            return False
        victims: list[Sequence] = []
        free = worker.ledger.free
        for victim in self._candidates(sequence, worker, now_ns=now_ns):
            if free >= num_pages and (worker.has_slot or victims):
                break
            victims.append(victim)
            free += worker.ledger.kv_pages(victim.sequence_id)
        if free < num_pages or not (worker.has_slot or victims):
            return False
        for victim in victims:
            self._standing.displace(victim, now_ns=now_ns)
        return True

    def _candidates(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> list[Sequence]:
        priority = self._policy.priority(sequence)
        worse = [
            running
            for running in worker.sequences.values()
            if self._policy.priority(running) > priority and not self._is_spared(running, now_ns=now_ns)
        ]
        return sorted(worse, key=self._least_right_first, reverse=True)

    def _is_spared(self, running: Sequence, *, now_ns: int) -> bool:
        return running.displaced_ns is not None and now_ns - running.started_ns < self._config.preemption_hysteresis_ns

    def _least_right_first(self, running: Sequence) -> tuple[int, float, int, int]:
        above = running.request.account.parent
        service = 0.0 if above is None else above.service
        return (self._policy.priority(running), service, running.request.arrival, running.index)
