"""Sequences that wait, in the order of their right."""

import bisect
from collections.abc import Iterator
from typing import TypeAlias

from loraplex_scheduler.core.request import Sequence

Right: TypeAlias = tuple[int, int, int]


class Queue:
    """Sorted by ``Sequence.right``, so that what returns from a worker takes its old place."""

    def __init__(self) -> None:
        self._rights: list[Right] = []
        self._sequences: dict[Right, Sequence] = {}
        self._new: dict[int, int] = {}
        """Number of a request to how many of its sequences wait for their first admission."""

    def __len__(self) -> int:
        return len(self._rights)

    def __contains__(self, sequence: Sequence) -> bool:
        return self._sequences.get(sequence.right) is sequence

    def __iter__(self) -> Iterator[Sequence]:
        """Over a snapshot: the queue may change meanwhile."""
        sequences = self._sequences
        return iter([sequences[right] for right in self._rights])

    @property
    def num_new_requests(self) -> int:
        """Requests with a sequence that was never admitted."""
        return len(self._new)

    def add(self, sequence: Sequence) -> None:
        assert sequence.right not in self._sequences, f"{sequence} is queued already"
        bisect.insort(self._rights, sequence.right)
        self._sequences[sequence.right] = sequence
        if sequence.admitted_ns is None:
            arrival = sequence.request.arrival
            self._new[arrival] = self._new.get(arrival, 0) + 1

    def remove(self, sequence: Sequence) -> None:
        """Before its first admission is noted."""
        del self._sequences[sequence.right]
        place = bisect.bisect_left(self._rights, sequence.right)
        del self._rights[place]
        if sequence.admitted_ns is None:
            arrival = sequence.request.arrival
            self._new[arrival] -= 1
            if self._new[arrival] == 0:
                del self._new[arrival]

    def check(self) -> None:
        assert self._rights == sorted(self._sequences), "the queue is out of order"
