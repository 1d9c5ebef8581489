"""Strict order of arrival, as most engines have it: what three policies for comparison share."""

import dataclasses

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.policy import Rules
from loraplex_scheduler.core.request import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FirstCome:
    """Tenants, adapters, classes and deadlines count for nothing."""

    rules: Rules

    def priority(self, sequence: Sequence) -> int:
        return 0

    def sequence_key(self, sequence: Sequence) -> Key:
        return (sequence.request.arrival, sequence.index)

    def lane_key(self, head: Key, account: Account, *, is_in_batch: bool) -> Key:
        return head

    def shelf_key(self, priority: int, account: Account, best: Key) -> Key:
        return best
