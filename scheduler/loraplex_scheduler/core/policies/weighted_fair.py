"""Our own policy: weighted fair over tenants and their adapters, deadlines and clustering within the fairness bound."""

from typing import Final

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.policy import Rules, Skips
from loraplex_scheduler.core.request import Sequence

_NEVER_NS: Final = 1 << 63


class WeightedFair:
    """Priority class; the tenant's counter; its adapter's; the nearest deadline; a batched adapter; arrival.

    Counters are compared in quanta, so that deadlines and clustering decide among those who are as good as equal. The
    service of two tenants that both wait differs by at most VTC's bound, one quantum and the burst of one that
    was idle before,

        2 * max(prefill_cost * longest prompt, decode_cost * tokens that the workers' pools hold) + quantum + burst,

    whatever the deadlines are. Within a quantum the exact counter comes before arrival.
    """

    def __init__(self, config: CoreConfig) -> None:
        self._token_ns: Final = config.deadline_token_ns
        self._quantum: Final = config.fairness_quantum
        self.rules: Final = Rules(
            skips=Skips.ALL,
            lookahead=config.max_lookahead,
            max_overtake_ns=config.max_overtake_ns,
            preempts=True,
            shares=True,
            refuses_early=True,
            aborts_late=True,
        )

    def priority(self, sequence: Sequence) -> int:
        return sequence.request.priority

    def sequence_key(self, sequence: Sequence) -> Key:
        """One that has begun goes on before others of its tenant begin: its reader is in the middle of a sentence."""
        return (not sequence.emitted, self._due_ns(sequence), sequence.request.arrival, sequence.index)

    def _due_ns(self, sequence: Sequence) -> int:
        """Its deadline, later by its length: under overload the nearest deadline first would serve the lost ones."""
        request = sequence.request
        if request.first_token_deadline_ns is None:
            return _NEVER_NS
        return request.first_token_deadline_ns + self._token_ns * (len(request.prompt_ids) + (request.max_tokens or 0))

    def lane_key(self, head: Key, account: Account, *, is_in_batch: bool) -> Key:
        is_new, due_ns, arrival, index = head
        quanta = account.service // self._quantum
        return (quanta, is_new, due_ns, not is_in_batch, account.service, arrival, index)

    def shelf_key(self, priority: int, account: Account, best: Key) -> Key:
        _, _, due_ns, is_elsewhere, _, arrival, index = best
        quanta = account.service // self._quantum
        return (priority, quanta, due_ns, is_elsewhere, account.service, arrival, index)
