"""Sequences that take the place of running ones: of a worse priority class, or of a tenant that holds too much."""

from typing import Final

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.fair_share import FairShare, tenant_of
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.worker import Worker


class Displacing:
    """Takes as few as needed, or nobody: the worst class first, of it the most served tenant's latest.

    A sequence that has given way once does so again only after it ran for the hysteresis, so that a stream of better
    ones cannot make it start over and over without getting on.
    """

    def __init__(self, config: CoreConfig, policy: Policy, standing: Standing, fair_share: FairShare) -> None:
        self._config: Final = config
        self._policy: Final = policy
        self._standing: Final = standing
        self._fair_share: Final = fair_share

    def could(self, priority: int, tenant: Account, worker: Worker) -> bool:
        """Whether anybody there may have to give way to a sequence of this class and tenant."""
        worst = worker.worst_class
        if not self._policy.rules.preempts or worst is None:
            return False
        return worst > priority or (worst == priority and self._fair_share.may_take(tenant))

    def make_room(self, sequence: Sequence, worker: Worker, *, num_pages: int, now_ns: int) -> bool:
        """See that a slot and ``num_pages`` are free by preempting; nobody is preempted in vain."""
        if not self.could(self._policy.priority(sequence), tenant_of(sequence), worker):
            return False
        victims: list[Sequence] = []
        free = worker.ledger.free
        for victim in self._candidates(sequence, worker, now_ns=now_ns):
            if free >= num_pages and (worker.has_slot or victims):
                break
            victims.append(victim)
            free += worker.ledger.kv_pages(victim.sequence_id)
        if free < num_pages or not (worker.has_slot or victims) or not self._can_afford(sequence, victims):
            return False
        for victim in victims:
            self._standing.displace(victim, now_ns=now_ns)
        return True

    def _can_afford(self, sequence: Sequence, victims: list[Sequence]) -> bool:
        """A better class takes what it needs; within a class what is computed twice is bounded."""
        priority = self._policy.priority(sequence)
        equals = [victim for victim in victims if self._policy.priority(victim) == priority]
        num_tokens = sum(len(victim.request.prompt_ids) + victim.num_output for victim in equals)
        if not self._fair_share.can_spend(num_tokens):
            return False
        self._fair_share.spend(num_tokens)
        return True

    def _candidates(self, sequence: Sequence, worker: Worker, *, now_ns: int) -> list[Sequence]:
        priority = self._policy.priority(sequence)
        has_claim = self._fair_share.may_take(tenant_of(sequence))
        worse = [
            running
            for running in worker.sequences.values()
            if self._gives_way(running, priority, has_claim=has_claim) and not self._is_spared(running, now_ns=now_ns)
        ]
        return sorted(worse, key=self._least_right_first, reverse=True)

    def _gives_way(self, running: Sequence, priority: int, *, has_claim: bool) -> bool:
        own = self._policy.priority(running)
        return own > priority or (own == priority and has_claim and self._fair_share.has_more(tenant_of(running)))

    def _is_spared(self, running: Sequence, *, now_ns: int) -> bool:
        return running.displaced_ns is not None and now_ns - running.started_ns < self._config.preemption_hysteresis_ns

    def _least_right_first(self, running: Sequence) -> tuple[int, float, int, int]:
        """Of one tenant the one that came last, which has the least to compute again."""
        return (self._policy.priority(running), tenant_of(running).service, running.request.arrival, running.index)
