"""What tenants, and adapters within a tenant, have been served: virtual token counters (VTC, arXiv 2401.00588)."""

import heapq
from collections.abc import Callable, Hashable
from typing import Final, Optional

from loraplex_scheduler.core.lazy_heap import LazyHeap

_MAX_IDLE_ACCOUNTS: Final = 65_536
"""Accounts without a request that are remembered; past it the least served are forgotten."""


class Account:
    """One counter. It grows with what is served, divided by the weight, and is lifted on return from idle."""

    __slots__ = ("children", "key", "num_live", "num_running", "num_waiting", "parent", "rate", "service")

    def __init__(self, key: Hashable, *, weight: float = 1.0, parent: Optional["Account"] = None) -> None:
        self.key: Final = key
        self.parent: Final = parent
        self.rate: Final = 1.0 / weight
        self.service = 0.0
        """Cost served, in weighted tokens."""
        self.num_live = 0
        """Requests that live."""
        self.num_waiting = 0
        """Sequences that wait."""
        self.num_running = 0
        """Sequences that are admitted; kept for tenants."""
        self.children: AccountBook | None = None
        """Of a tenant: by the digests that its requests run on."""

    def charge(self, cost: float) -> None:
        """Here and in the account above; a refund is negative."""
        account: Account | None = self
        while account is not None:
            account.service += cost * account.rate
            account = account.parent


class AccountBook:
    """Accounts of one level, forgotten once nobody could tell them from new ones."""

    def __init__(self, open_account: Callable[[Hashable], Account], *, burst: float) -> None:
        self._open: Final = open_account
        self._burst: Final = burst
        self._accounts: dict[Hashable, Account] = {}
        self._backlogged: Final = LazyHeap[Account](lambda account: (account.service,) if account.num_waiting else None)
        self._idle: list[tuple[float, int, Account]] = []
        self._num_closed = 0
        self._last_left: Account | None = None

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, key: Hashable) -> Account:
        """For one more request; ``leave`` when it has ended."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = self._open(key)
        account.num_live += 1
        return account

    def leave(self, account: Account) -> None:
        account.num_live -= 1
        if account.num_live == 0:
            self._num_closed += 1
            heapq.heappush(self._idle, (account.service, self._num_closed, account))
            self._forget_old()

    def begin_wait(self, account: Account) -> None:
        """One more sequence waits. One who had none is lifted to the least counter of those who have, less the burst.

        VTC gives no credit for idling at all. With a bounded one, who asks for less than a share on the whole may do so
        in bursts and is not set back by those who always wait.
        """
        if account.num_waiting == 0:
            account.service = max(account.service, self._floor() - self._burst)
        account.num_waiting += 1
        self._backlogged.add(account)

    def end_wait(self, account: Account) -> None:
        account.num_waiting -= 1
        if account.num_waiting == 0:
            self._last_left = account

    @property
    def num_backlogged(self) -> int:
        """At most a few more than that: those that left since are forgotten when they come up."""
        return len(self._backlogged)

    def refunded(self, account: Account) -> None:
        """Its counter fell."""
        self._backlogged.add(account)

    def _floor(self) -> float:
        first = self._backlogged.first()
        if first is not None:
            return first.service
        return self._last_left.service if self._last_left is not None else 0.0

    def _forget_old(self) -> None:
        floor = self._floor()
        while self._idle and (self._idle[0][0] <= floor or len(self._idle) > _MAX_IDLE_ACCOUNTS):
            service, _, account = heapq.heappop(self._idle)
            if account.num_live == 0 and account.service == service and self._accounts.get(account.key) is account:
                del self._accounts[account.key]


class Accounts:
    """Tenants, and below each the sets of adapters that it asks for.

    Args:
        burst: service that one who returns from idle may be behind the others, and catch up on.
    """

    def __init__(self, weight_of: Callable[[str], float], *, burst: float = 0.0) -> None:
        self._burst: Final = burst
        self._tenants: Final = AccountBook(lambda key: Account(key, weight=weight_of(str(key))), burst=burst)

    @property
    def num_backlogged_tenants(self) -> int:
        return self._tenants.num_backlogged

    def enter(self, tenant: str, digests: tuple[str, ...]) -> Account:
        """The account that a new request's service is charged to."""
        above = self._tenants.enter(tenant)
        if above.children is None:
            above.children = AccountBook(lambda key: Account(key, parent=above), burst=self._burst)
        return above.children.enter(digests)

    def leave(self, account: Account) -> None:
        above, book = _above(account)
        book.leave(account)
        self._tenants.leave(above)

    def begin_wait(self, account: Account) -> None:
        above, book = _above(account)
        self._tenants.begin_wait(above)
        book.begin_wait(account)

    def end_wait(self, account: Account) -> None:
        above, book = _above(account)
        book.end_wait(account)
        self._tenants.end_wait(above)

    def refund(self, account: Account, cost: float) -> None:
        above, book = _above(account)
        account.charge(-cost)
        book.refunded(account)
        self._tenants.refunded(above)


def _above(account: Account) -> tuple[Account, AccountBook]:
    above = account.parent
    assert above is not None, f"the account {account.key} is a tenant's"
    assert above.children is not None, f"the account {account.key} is in no book"
    return above, above.children
