"""Points in time at which requests end by themselves."""

import enum
import heapq

from loraplex_scheduler.core.event import RequestKey


class Due(enum.Enum):
    """What a point in time means, in the order in which equal times are handled."""

    TIME_LIMIT = 0
    DEADLINE = 1
    QUEUE_DEADLINE = 2
    FIRST_TOKEN = 3


class Timers:
    """A heap with lazy removal: entries of ended requests are thrown out once they are the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, RequestKey]] = []
        """(when, rank of Due, arrival of the request, key)"""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when_ns: int, due: Due, arrival: int, key: RequestKey) -> None:
        heapq.heappush(self._heap, (when_ns, due.value, arrival, key))

    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ns: int) -> list[tuple[Due, int, RequestKey]]:
        """(what, arrival, key) of all that are due, first ones first."""
        due = []
        while self._heap and self._heap[0][0] <= now_ns:
            _, rank, arrival, key = heapq.heappop(self._heap)
            due.append((Due(rank), arrival, key))
        return due

    def forget_ended(self, arrivals: set[int]) -> None:
        """Keeps the entries of the requests that still live."""
        self._heap = [entry for entry in self._heap if entry[2] in arrivals]
        heapq.heapify(self._heap)
