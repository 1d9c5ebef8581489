"""Points in time at which an adapter on a worker, or a lane, deserves a look."""

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Alarms(Generic[T]):
    """A heap. What has changed since is for the one who is woken to see."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._last = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when_ns: int, what: T) -> None:
        self._last += 1
        heapq.heappush(self._heap, (when_ns, self._last, what))

    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ns: int, *, limit: int) -> list[T]:
        """At most ``limit`` that are due, the first ones first; the rest keep for the next time."""
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now_ns and len(due) < limit:
            due.append(heapq.heappop(self._heap)[2])
        return due
