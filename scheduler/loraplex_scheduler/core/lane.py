"""Waiting sequences that differ in nothing that decides where they can go: one class, tenant, adapters and places."""

import heapq
from collections.abc import Iterator
from typing import Final, NamedTuple

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.request import Sequence


class LaneKey(NamedTuple):
    priority: int
    tenant: str
    digests: tuple[str, ...]
    places: frozenset[str]


class Lane:
    """A heap of them by the policy's key. One that leaves is not looked for: its ticket is void."""

    __slots__ = ("_heap", "account", "digests", "key", "num_waiting", "places", "priority", "tenant")

    def __init__(self, key: LaneKey, account: Account) -> None:
        self.key: Final = key
        self.priority: Final = key.priority
        self.tenant: Final = key.tenant
        self.digests: Final = key.digests
        self.places: Final = key.places
        self.account = account
        self.num_waiting = 0
        self._heap: list[tuple[Key, int, Sequence]] = []

    def __repr__(self) -> str:
        return f"Lane({self.priority}, {self.tenant}, {self.digests}, {self.num_waiting} waiting)"

    def __iter__(self) -> Iterator[Sequence]:
        """In no order."""
        return iter([sequence for _, ticket, sequence in self._heap if sequence.ticket == ticket])

    def add(self, sequence: Sequence, key: Key) -> None:
        """Its ticket is new."""
        self.num_waiting += 1
        heapq.heappush(self._heap, (key, sequence.ticket, sequence))

    def remove_one(self) -> None:
        """One of them has a void ticket now."""
        self.num_waiting -= 1
        if len(self._heap) > 2 * self.num_waiting + 16:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapq.heapify(self._heap)

    def head_key(self) -> Key | None:
        """Of the first in the heap; None if there is none."""
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop(self) -> tuple[Key, int, Sequence]:
        """Take the first out of the heap; it waits on, and is to be put back."""
        assert self.head_key() is not None, f"{self} is empty"
        return heapq.heappop(self._heap)

    def put_back(self, entry: tuple[Key, int, Sequence]) -> None:
        if entry[2].ticket == entry[1]:
            heapq.heappush(self._heap, entry)
