"""Virtual time: what happens next, and when."""

import heapq
from collections.abc import Callable
from typing import TypeAlias

Action: TypeAlias = Callable[[], None]


class EventHeap:
    """Actions by time; those of one time happen in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._entries: list[tuple[int, int, Action]] = []
        self._num_scheduled = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def at(self, when_ns: int, action: Action) -> None:
        assert when_ns >= self.now_ns, f"{when_ns} is over, it is {self.now_ns}"
        self._num_scheduled += 1
        heapq.heappush(self._entries, (when_ns, self._num_scheduled, action))

    def after(self, delay_ns: int, action: Action) -> None:
        self.at(self.now_ns + delay_ns, action)

    def advance(self) -> None:
        """Go to the next time at which anything happens, and do all that happens then."""
        self.now_ns = self._entries[0][0]
        while self._entries and self._entries[0][0] == self.now_ns:
            heapq.heappop(self._entries)[2]()
