"""Whether ratios fell against the last committed result. Absolute times are not compared: machines differ."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_FALL = 0.15
"""Of a ratio, on top of what its runs spread: two cores of a shared machine do not repeat closer than this."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of every run of one cell of the table."""

    where: str
    num_adapters: int
    runs_s: tuple[float, ...]

    @property
    def cell(self) -> tuple[str, int]:
        return self.where, self.num_adapters

    @property
    def median_s(self) -> float:
        return statistics.median(self.runs_s)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """One cell that is slower than it was, against the engine without adapters of its own run."""

    cell: tuple[str, int]
    before: float
    now: float

    def __str__(self) -> str:
        where, num_adapters = self.cell
        return f"{where} with {num_adapters} adapters: {self.now:.2f} of the engine without LoRA, was {self.before:.2f}"


def falls(before: Sequence[Timing], now: Sequence[Timing]) -> list[Fall]:
    """Cells whose best run now is worse than the median before by more than ``MAX_FALL``.

    The best run, since a neighbour can only slow a run down. Cells of one side only are not compared.
    """
    was, is_now = _speeds(before, statistics.median), _speeds(now, min)
    return [
        Fall(cell=cell, before=was[cell], now=speed)
        for cell, speed in is_now.items()
        if cell in was and speed < was[cell] * (1 - MAX_FALL)
    ]


def _speeds(timings: Sequence[Timing], pick: Callable[[Sequence[float]], float]) -> dict[tuple[str, int], float]:
    picked = {timing.cell: pick(timing.runs_s) for timing in timings}
    return {cell: picked["engine", 0] / time_s for cell, time_s in picked.items()}


def last_result(folder: Path, *, but: Path) -> list[Timing]:
    """The newest committed one; empty if there is none. ``but`` is the file that this run writes."""
    paths = sorted(path for path in folder.glob("*-cpu.json") if path != but)
    if not paths:
        return []
    rows = json.loads(paths[-1].read_text())["timings"]
    return [Timing(where=row["where"], num_adapters=row["num_adapters"], runs_s=tuple(row["runs_s"])) for row in rows]
