"""The sequences that an engine steps, until a command or an end takes them out."""

import bisect
from collections.abc import Iterator

from loraplex_worker.engine.sequence import Sequence


def _layout_key(sequence: Sequence) -> tuple[tuple[str, ...], int]:
    return sequence.adapter_key, sequence.ordinal


class StandingBatch:
    """Live sequences by id, in order of admission, and in an order that makes one adapter's rows neighbours."""

    def __init__(self) -> None:
        self._by_id: dict[int, Sequence] = {}
        self._by_layout: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._by_id

    def get(self, sequence_id: int) -> Sequence | None:
        return self._by_id.get(sequence_id)

    def add(self, sequence: Sequence) -> None:
        assert sequence.sequence_id not in self._by_id, sequence.sequence_id
        self._by_id[sequence.sequence_id] = sequence
        bisect.insort(self._by_layout, sequence, key=_layout_key)

    def remove(self, sequence: Sequence) -> None:
        del self._by_id[sequence.sequence_id]
        place = bisect.bisect_left(self._by_layout, _layout_key(sequence), key=_layout_key)
        assert self._by_layout[place] is sequence, sequence.sequence_id
        del self._by_layout[place]

    def in_admission_order(self) -> Iterator[Sequence]:
        return iter(self._by_id.values())

    def in_layout_order(self) -> Iterator[Sequence]:
        return iter(self._by_layout)
