"""What one tenant may hold of the slots while others are about, and what it costs to give others theirs at once."""

from collections import deque
from collections.abc import Hashable
from typing import Final

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.request import Sequence


class RecentTenants:
    """The tenants of the last admissions: who was served a moment ago is likely to come again."""

    def __init__(self, num_remembered: int) -> None:
        self._num_remembered: Final = num_remembered
        self._admissions: Final[deque[tuple[Hashable, float]]] = deque()
        """Tenant and weight: an account may be closed and opened anew in between."""
        self._counts: dict[Hashable, int] = {}
        self.total_weight = 0.0

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, account: Account) -> bool:
        return account.key in self._counts

    def note(self, account: Account) -> None:
        tenant, weight = account.key, 1 / account.rate
        self._admissions.append((tenant, weight))
        if tenant not in self._counts:
            self._counts[tenant] = 0
            self.total_weight += weight
        self._counts[tenant] += 1
        if len(self._admissions) > self._num_remembered:
            self._forget(*self._admissions.popleft())

    def _forget(self, tenant: Hashable, weight: float) -> None:
        self._counts[tenant] -= 1
        if not self._counts[tenant]:
            del self._counts[tenant]
            self.total_weight -= weight


class FairShare:
    """Shares of the slots of all workers, by weight, among the tenants that were admitted lately.

    Nothing is withheld from a tenant that is alone. With others about, one that holds more than its share leaves a part
    of each worker free for them, so that they need not wait for one of its sequences to end; and where that is used up,
    its latest sequences give way. What is computed twice for that is bounded by a part of all that is computed.
    """

    def __init__(self, config: CoreConfig) -> None:
        self._config: Final = config
        self._recent: Final = RecentTenants(config.num_recent_admissions)
        self._credit = float(config.fair_preemption_credit)
        self.num_slots = 0
        """Of all workers."""

    def admitted(self, account: Account) -> None:
        account.num_running += 1
        self._recent.note(account)

    def left(self, account: Account) -> None:
        account.num_running -= 1

    def of(self, account: Account) -> float:
        """Slots."""
        weight = 1 / account.rate
        others = self._recent.total_weight - (weight if account in self._recent else 0.0)
        return self.num_slots * weight / (weight + others)

    def has_more(self, account: Account) -> bool:
        """Whether it holds its share or more, while others are about."""
        return account.num_running >= self.of(account) and account.num_running > 0

    def reserve(self, account: Account, total: int) -> int:
        """What an admission of this tenant must leave free of a worker's slots or pages."""
        return int(self._config.fair_reserve * total) if self.has_more(account) else 0

    def may_take(self, account: Account) -> bool:
        """Whether it holds so little that others give way to it."""
        return account.num_running + 1 <= self.of(account)

    # --- what giving way costs ---

    def earn(self, num_tokens: int) -> None:
        """So many were computed."""
        credit = self._credit + self._config.fair_preemption_cost * num_tokens
        self._credit = min(credit, float(self._config.fair_preemption_credit))

    def can_spend(self, num_tokens: int) -> bool:
        return num_tokens <= self._credit

    def spend(self, num_tokens: int) -> None:
        self._credit -= num_tokens


def tenant_of(sequence: Sequence) -> Account:
    above = sequence.request.account.parent
    assert above is not None, f"{sequence} is charged to no tenant"
    return above
