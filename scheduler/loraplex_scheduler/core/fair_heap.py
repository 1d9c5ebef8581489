"""The lanes that wait for one thing on one worker, in the order of right."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.lane import Lane
from loraplex_scheduler.core.lazy_heap import Key, LazyHeap
from loraplex_scheduler.core.policy import Policy


class _Shelf:
    """The lanes of one tenant in one priority class."""

    __slots__ = ("account", "lanes", "priority")

    def __init__(self, priority: int, account: Account, lane_key: Callable[[Lane], Key | None]) -> None:
        self.priority: Final = priority
        self.account = account
        self.lanes: Final = LazyHeap[Lane](lane_key)


class FairHeap:
    """Two levels: the shelves of the tenants, and on each the lanes of its adapters.

    A change that gives a lane more right must be announced by ``touch``; one that takes right away need not be.

    Args:
        is_in_batch: whether a lane's adapters have rows on the worker already.
    """

    def __init__(self, policy: Policy, is_in_batch: Callable[[Lane], bool]) -> None:
        self._policy: Final = policy
        self._is_in_batch: Final = is_in_batch
        self._members: set[Lane] = set()
        self._shelves: dict[tuple[int, str], _Shelf] = {}
        self._heap: Final = LazyHeap[_Shelf](self._shelf_key)

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._members

    def __len__(self) -> int:
        return len(self._members)

    def file(self, lane: Lane) -> None:
        self._members.add(lane)
        self.touch(lane)

    def withdraw(self, lane: Lane) -> None:
        """What is left of it is dropped when it comes up; its shelf's next may have more right than it had."""
        self._members.discard(lane)
        shelf = self._shelves.get((lane.priority, lane.tenant))
        if shelf is not None:
            self._heap.add(shelf)

    def touch(self, lane: Lane) -> None:
        """It, or its account, may have more right than before."""
        if lane not in self._members:
            return
        shelf = self._shelves.get((lane.priority, lane.tenant))
        above = lane.account.parent
        assert above is not None, f"{lane} is charged to a tenant"
        if shelf is None:
            shelf = self._shelves[lane.priority, lane.tenant] = _Shelf(lane.priority, above, self._lane_key)
        shelf.account = above
        shelf.lanes.add(lane)
        self._heap.add(shelf)

    def first(self) -> tuple[Key, Lane] | None:
        """The lane of most right, with its key among all heaps of this policy."""
        shelf = self._heap.first()
        if shelf is None:
            return None
        lane = shelf.lanes.first()
        key = self._heap.first_key()
        assert lane is not None, "a shelf without a lane came up"
        assert key is not None, "a shelf without a key came up"
        return key, lane

    def _lane_key(self, lane: Lane) -> Key | None:
        head = lane.head_key() if lane in self._members else None
        if head is None:
            return None
        return self._policy.lane_key(head, lane.account, is_in_batch=self._is_in_batch(lane))

    def _shelf_key(self, shelf: _Shelf) -> Key | None:
        best = shelf.lanes.first_key()
        if best is None:
            self._forget(shelf)
            return None
        return self._policy.shelf_key(shelf.priority, shelf.account, best)

    def _forget(self, shelf: _Shelf) -> None:
        key = (shelf.priority, str(shelf.account.key))
        if self._shelves.get(key) is shelf:
            del self._shelves[key]
