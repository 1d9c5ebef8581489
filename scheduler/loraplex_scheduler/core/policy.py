"""Whose turn it is. The batcher asks a policy for every choice that is a matter of right, and knows none itself."""

from collections.abc import Iterable
from typing import Final, Protocol

from loraplex_scheduler.core.queue import Queue
from loraplex_scheduler.core.request import Sequence


class Policy(Protocol):
    """The seam for fairness, deadlines and clustering. A policy keeps no pages and sends no commands."""

    def candidates(self, queue: Queue, *, now_ns: int) -> Iterable[Sequence]:
        """Waiting sequences, the first right first."""
        ...

    def is_overdue(self, *, eligible_ns: int, now_ns: int) -> bool:
        """Whether a sequence that could have run since ``eligible_ns`` may be overtaken no more."""
        ...

    def has_more_right(self, one: Sequence, other: Sequence) -> bool:
        """Whether ``other`` gives way to ``one`` where a worker has not room for both."""
        ...

    def victim(self, running: Iterable[Sequence], *, below: Sequence) -> Sequence | None:
        """Which running sequence gives way so that ``below`` can go on; None if all have more right."""
        ...


class FirstComeFirstServed:
    """By priority class, then arrival; what does not fit is skipped, for a bounded time.

    A sequence is *eligible* from when it was queued, or from when the last of its adapters came to the device if that
    was later. Once it has been eligible for ``max_overtake_ns`` it is *overdue* for good: its worker admits and loads
    nothing of less right until it is in (drain). Hence, for a sequence with nobody of more right before it,

        wait <= T_load + max_overtake + T_load + T_drain

    with T_load the time that a load of its adapters takes (0 where they are on the device; the second one only where
    there was no room to load them before it was overdue) and T_drain the time after which the worker's running
    sequences have given back the room: at most the longest remaining output of one of them times the step time, since
    none of less right joins them. A sequence of more right may take its turn before: higher priority classes are not
    held up.
    """

    def __init__(self, max_overtake_ns: int) -> None:
        self._max_overtake_ns: Final = max_overtake_ns

    def candidates(self, queue: Queue, *, now_ns: int) -> Iterable[Sequence]:
        return queue

    def is_overdue(self, *, eligible_ns: int, now_ns: int) -> bool:
        return now_ns - eligible_ns >= self._max_overtake_ns

    def has_more_right(self, one: Sequence, other: Sequence) -> bool:
        return one.right < other.right

    def victim(self, running: Iterable[Sequence], *, below: Sequence) -> Sequence | None:
        lower = [sequence for sequence in running if self.has_more_right(below, sequence)]
        return max(lower, key=lambda sequence: sequence.right, default=None)
