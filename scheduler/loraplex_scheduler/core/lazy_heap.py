"""A heap of things whose keys grow while they wait."""

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeAlias, TypeVar

T = TypeVar("T")
Key: TypeAlias = tuple[Any, ...]
_SLACK: Final = 64
"""Entries that may be stale before the heap is built anew."""


class LazyHeap(Generic[T]):
    """Least key first. An entry's key is a lower bound of its item's; it is brought up to date when it comes up.

    So a key that grows costs nothing until its turn; one that falls must be announced by ``add``, which is cheap.

    Args:
        key: of an item, now; None for one that is to be forgotten.
    """

    def __init__(self, key: Callable[[T], Key | None]) -> None:
        self._key: Final = key
        self._heap: list[tuple[Key, int, T]] = []
        self._entries: dict[T, tuple[Key, int]] = {}
        """The one valid entry of each item."""
        self._last = 0

    def __len__(self) -> int:
        """Items that have an entry; some may be forgotten when they come up."""
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def add(self, item: T) -> None:
        """New, or its key may have fallen."""
        key = self._key(item)
        if key is None:
            return
        entry = self._entries.get(item)
        if entry is None or key < entry[0]:
            self._push(item, key)
            if len(self._heap) > 2 * len(self._entries) + _SLACK:
                self._rebuild()

    def first(self) -> T | None:
        """The item of the least key; it stays."""
        heap = self._heap
        while heap:
            key, number, item = heap[0]
            if self._entries.get(item, (None, 0))[1] != number:
                heapq.heappop(heap)
                continue
            now = self._key(item)
            if now == key:
                return item
            heapq.heappop(heap)
            if now is None:
                del self._entries[item]
            else:
                self._push(item, now)
        return None

    def first_key(self) -> Key | None:
        return self._heap[0][0] if self.first() is not None else None

    def _push(self, item: T, key: Key) -> None:
        self._last += 1
        self._entries[item] = (key, self._last)
        heapq.heappush(self._heap, (key, self._last, item))

    def _rebuild(self) -> None:
        self._heap = [(key, number, item) for item, (key, number) in self._entries.items()]
        heapq.heapify(self._heap)
