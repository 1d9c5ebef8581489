"""Adapter loads of one virtual worker: a few at a time, the others wait in order."""

import collections
import functools
from collections.abc import Callable
from typing import Final

from loraplex_scheduler.simulation.cost_model import LoadCost
from loraplex_scheduler.simulation.event_heap import EventHeap


class AdapterChannels:
    """Calls ``on_loaded`` with each digest when its bytes have come."""

    def __init__(self, heap: EventHeap, cost: LoadCost, on_loaded: Callable[[str], None]) -> None:
        self._heap: Final = heap
        self._cost: Final = cost
        self._on_loaded: Final = on_loaded
        self._waiting: collections.deque[tuple[str, int]] = collections.deque()
        self._num_busy = 0

    def load(self, digest: str, num_bytes: int) -> None:
        self._waiting.append((digest, num_bytes))
        self._start()

    def _start(self) -> None:
        while self._waiting and self._num_busy < self._cost.num_channels:
            digest, num_bytes = self._waiting.popleft()
            self._num_busy += 1
            self._heap.after(self._cost.load_ns(num_bytes), functools.partial(self._end, digest))

    def _end(self, digest: str) -> None:
        self._num_busy -= 1
        self._on_loaded(digest)
        self._start()
