"""Keeps the label values of a metric few: the busiest names have series of their own, the rest share one."""

from collections.abc import Callable
from typing import Final

from loraplex_contract.metrics import Labels

OTHER: Final = "other"
_AGING_INTERVAL: Final = 8192
"""After so many placements every count is halved, so that yesterday's traffic does not hold a place for ever."""


class TopLabels:
    """At most ``size`` sets of label values, by traffic.

    A newcomer takes the place of the least busy one once it has had twice its traffic. The series of what leaves are
    dropped, not added to ``other``: a sum of rates stays right, a sum of totals then falls.

    Args:
        on_drop: told what lost its place.
    """

    def __init__(self, size: int, on_drop: Callable[[Labels], None] = lambda labels: None) -> None:
        self._size = size
        self._on_drop = on_drop
        self._members: dict[Labels, int] = {}
        self._candidates: dict[Labels, int] = {}
        self._num_placed = 0

    def place(self, labels: Labels) -> Labels:
        """The labels under which one more event is counted: its own or all ``other``."""
        self._age()
        if labels in self._members or len(self._members) < self._size:
            self._members[labels] = self._members.get(labels, 0) + 1
            return labels
        count = self._candidates.get(labels, 0) + 1
        if not self._takes_a_place(labels, count):
            self._note(labels, count)
            return (OTHER,) * len(labels)
        return labels

    def label(self, labels: Labels) -> Labels:
        """As ``place``, for what belongs to an event that was placed before."""
        return labels if labels in self._members else (OTHER,) * len(labels)

    def _takes_a_place(self, labels: Labels, count: int) -> bool:
        least = min(self._members, key=self._members.__getitem__, default=None)
        if least is None or count <= 2 * self._members[least]:
            return False
        del self._members[least]
        self._on_drop(least)
        self._candidates.pop(labels, None)
        self._members[labels] = count
        return True

    def _note(self, labels: Labels, count: int) -> None:
        if labels not in self._candidates and len(self._candidates) >= 4 * self._size:
            self._halve()
        if labels in self._candidates or len(self._candidates) < 4 * self._size:
            self._candidates[labels] = count

    def _age(self) -> None:
        self._num_placed += 1
        if self._num_placed % _AGING_INTERVAL == 0:
            self._members = {labels: count // 2 for labels, count in self._members.items()}
            self._halve()

    def _halve(self) -> None:
        self._candidates = {labels: count // 2 for labels, count in self._candidates.items() if count > 1}
