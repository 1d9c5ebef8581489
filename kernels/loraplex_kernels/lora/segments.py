"""Which rows of a batch belong to which adapter, and with what weight.

A batch is described by *runs*: consecutive rows that carry the same (adapter, weight) pairs, which is what one
sequence contributes to a step. From the runs the builder makes one segment per adapter, so that each adapter costs
one shrink and one expand, however many rows and sequences use it.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

AdapterPairs = tuple[tuple[int, float], ...]
"""(adapter index, weight) pairs of one row. Empty: a base row. Weight multiplies the site's own LoRA scale."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """All rows of the batch that one adapter changes, ascending, each once."""

    adapter: int
    """Index of the adapter in the caller's list of weights."""
    start: int
    """First row."""
    stop: int
    """One past the last row. ``stop - start`` is the number of rows only where ``index`` is None."""
    index: Tensor | None
    """[num_rows] int64 rows, or None where the rows are exactly ``start .. stop - 1``."""
    num_rows: int
    weight: float
    """The weight of every row, where ``row_weights`` is None."""
    row_weights: Tensor | None
    """[num_rows, 1] float32, only where the rows of this segment have different weights."""

    def take(self, rows: Tensor) -> Tensor:
        """Rows of this segment out of [T, ...]: a view where they are contiguous, a copy otherwise."""
        if self.index is None:
            return rows[self.start : self.stop]
        return rows.index_select(0, self.index)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraBatch:
    """The adapters of one batch of ``num_rows`` rows. Has at least one segment: a pure base batch is ``None``."""

    num_rows: int
    runs: tuple[tuple[int, AdapterPairs], ...]
    """(number of rows, pairs), in row order, covering exactly ``num_rows`` rows."""
    segments: tuple[Segment, ...]
    """One per adapter that has rows, ascending by adapter index."""

    @classmethod
    def from_runs(
        cls, runs: Iterable[tuple[int, AdapterPairs]], *, device: torch.device | str = "cpu"
    ) -> "LoraBatch | None":
        """Group rows by adapter.

        Args:
            runs: one entry per sequence of the step, in row order: (number of rows, pairs of those rows). An adapter
                named twice in one run counts once, with the sum of its weights.
            device: where index and weight tensors go.

        Returns:
            None where no row carries an adapter: the caller then runs the base path.
        """
        kept = tuple((count, _merge(pairs)) for count, pairs in runs if count > 0)
        spans: dict[int, list[tuple[int, int, float]]] = {}
        row = 0
        for count, pairs in kept:
            for adapter, weight in pairs:
                spans.setdefault(adapter, []).append((row, row + count, weight))
            row += count
        if not spans:
            return None
        segments = tuple(_segment(adapter, spans[adapter], device) for adapter in sorted(spans))
        return cls(num_rows=row, runs=kept, segments=segments)

    @classmethod
    def from_rows(cls, rows: Sequence[AdapterPairs], *, device: torch.device | str = "cpu") -> "LoraBatch | None":
        """Like ``from_runs`` with one entry per row."""
        return cls.from_runs(((1, pairs) for pairs in rows), device=device)

    def select(self, rows: Sequence[int], *, device: torch.device | str = "cpu") -> "LoraBatch | None":
        """The descriptor of a new batch made of these rows of this one, in the order given (e.g. the logit rows)."""
        pairs_of_row: list[AdapterPairs] = []
        for count, pairs in self.runs:
            pairs_of_row.extend([pairs] * count)
        return self.from_rows([pairs_of_row[row] for row in rows], device=device)

    @property
    def max_adapter(self) -> int:
        """Highest adapter index used: the caller's list of weights must be longer than this."""
        return self.segments[-1].adapter


def _merge(pairs: AdapterPairs) -> AdapterPairs:
    for adapter, _ in pairs:
        if adapter < 0:
            raise ValueError(f"adapter index {adapter} is negative; a base row has an empty tuple of pairs")
    if len(pairs) < 2:
        return tuple(pairs)
    total: dict[int, float] = {}
    for adapter, weight in pairs:
        total[adapter] = total.get(adapter, 0.0) + weight
    return tuple(total.items())


def _segment(adapter: int, spans: list[tuple[int, int, float]], device: torch.device | str) -> Segment:
    start, stop = spans[0][0], spans[-1][1]
    num_rows = sum(last - first for first, last, _ in spans)
    index = None
    if num_rows != stop - start:
        rows = [row for first, last, _ in spans for row in range(first, last)]
        index = torch.tensor(rows, dtype=torch.int64, device=device)
    weight = spans[0][2]
    row_weights = None
    if any(other != weight for _, _, other in spans):
        values = [value for first, last, value in spans for _ in range(first, last)]
        row_weights = torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)
    return Segment(
        adapter=adapter,
        start=start,
        stop=stop,
        index=index,
        num_rows=num_rows,
        weight=weight,
        row_weights=row_weights,
    )
