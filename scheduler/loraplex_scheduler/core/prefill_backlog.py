"""Prompt rows that a worker was given and has not computed: what one admitted now waits for before its own."""

from typing import Final


class PrefillBacklog:
    """An estimate that mends itself: reports say how many rows were prefill, not whose. Workers take them in order."""

    def __init__(self) -> None:
        self._given: Final[dict[int, int]] = {}
        """Rows of each sequence that has no token yet, by id."""
        self._num_given = 0
        self._num_done = 0
        """Rows reported that belong to sequences which have no token yet."""

    def __len__(self) -> int:
        """Sequences without a token."""
        return len(self._given)

    @property
    def num_rows(self) -> int:
        return self._num_given - self._num_done

    def add(self, sequence_id: int, num_rows: int) -> None:
        self._given[sequence_id] = num_rows
        self._num_given += num_rows

    def compute(self, num_rows: int) -> None:
        """A step has computed so many, or found them cached."""
        self._num_done = min(self._num_given, self._num_done + num_rows)

    def settle(self, sequence_id: int) -> None:
        """It has its first token of this admission, or has left."""
        num_rows = self._given.pop(sequence_id, 0)
        self._num_given -= num_rows
        self._num_done = min(self._num_given, max(0, self._num_done - num_rows))
