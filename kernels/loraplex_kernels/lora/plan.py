"""Which rows, adapters and ranks each program of a LoRA launch works on: built on the host, read from device memory.

A *segment* is the set of rows that carry the same adapters. So every row is in one segment, a program adds up all
adapters of its rows before it writes, and no two programs write one element. A *pair* is one (row, adapter) of a
segment; the shrink leaves one vector a pair. Segments are cut into tiles of at most ``block_m`` rows, and the shrink's
tiles also into blocks of ``block_r`` ranks of the adapter's true rank.

``PlanBuffers`` has fixed addresses and capacities. A CUDA graph that was captured over it reads the numbers of tiles
from it at every replay; grids do not depend on them.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import AdapterPairs

SHRINK_FIELDS = 5
"""slot, first rank, first entry of ``rows``, first pair, number of rows."""
EXPAND_FIELDS = 6
"""first entry of ``rows``, number of rows, first entry of ``adapters``, number of adapters, first pair, pairs between
adapters."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """The work of one step, as lists."""

    block_m: int
    block_r: int
    num_rows: int
    """Rows of the batch; base rows are counted, though they are in no tile."""
    rows: list[int]
    adapters: list[int]
    weights: list[float]
    """By pair."""
    shrink_tiles: list[tuple[int, int, int, int, int]]
    expand_tiles: list[tuple[int, int, int, int, int, int]]
    max_rank: int


def plan_runs(
    runs: Iterable[tuple[int, AdapterPairs]], slot_ranks: Sequence[int], *, block_m: int, block_r: int
) -> HostPlan:
    """Cut a step into tiles.

    Args:
        runs: (number of rows, (slot, weight) pairs) in row order; a slot named twice counts once, weights added.
        slot_ranks: ``AdapterTable.slot_ranks``.
        block_m: rows of a tile.
        block_r: ranks of a shrink tile.

    Raises:
        ValueError: a slot that is empty or unknown.
    """
    segments: dict[tuple[int, ...], tuple[list[int], list[dict[int, float]]]] = {}
    row = 0
    for count, pairs in runs:
        merged = _merged(pairs, slot_ranks)
        if merged:
            rows, row_weights = segments.setdefault(tuple(sorted(merged)), ([], []))
            rows += range(row, row + count)
            row_weights += [merged] * count
        row += count
    plan = HostPlan(
        block_m=block_m,
        block_r=block_r,
        num_rows=row,
        rows=[],
        adapters=[],
        weights=[],
        shrink_tiles=[],
        expand_tiles=[],
        max_rank=max((slot_ranks[slot] for slots in segments for slot in slots), default=0),
    )
    for slots, (rows, row_weights) in segments.items():
        _add_segment(plan, slots, rows, row_weights, slot_ranks)
    return plan


def _merged(pairs: AdapterPairs, slot_ranks: Sequence[int]) -> dict[int, float]:
    merged: dict[int, float] = {}
    for slot, weight in pairs:
        if not 0 <= slot < len(slot_ranks) or not slot_ranks[slot]:
            raise ValueError(f"slot {slot} holds no adapter; the table has {len(slot_ranks)} slots")
        merged[slot] = merged.get(slot, 0.0) + weight
    return merged


def _add_segment(
    plan: HostPlan,
    slots: tuple[int, ...],
    rows: list[int],
    row_weights: list[dict[int, float]],
    slot_ranks: Sequence[int],
) -> None:
    first_row, first_pair, first_adapter = len(plan.rows), len(plan.weights), len(plan.adapters)
    plan.rows.extend(rows)
    plan.adapters.extend(slots)
    for index, slot in enumerate(slots):
        plan.weights.extend(weights[slot] for weights in row_weights)
        for start in range(0, len(rows), plan.block_m):
            count = min(plan.block_m, len(rows) - start)
            pair = first_pair + index * len(rows) + start
            for rank in range(0, slot_ranks[slot], plan.block_r):
                plan.shrink_tiles.append((slot, rank, first_row + start, pair, count))
    for start in range(0, len(rows), plan.block_m):
        count = min(plan.block_m, len(rows) - start)
        plan.expand_tiles.append((first_row + start, count, first_adapter, len(slots), first_pair + start, len(rows)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanCapacity:
    """How much a ``PlanBuffers`` can hold."""

    num_rows: int
    num_pairs: int
    num_adapters: int
    """Sum over segments of their adapters."""
    num_shrink_tiles: int
    num_expand_tiles: int

    @classmethod
    def of(cls, plan: HostPlan) -> "PlanCapacity":
        """What one plan needs, at least 1 of each."""
        return cls(
            num_rows=max(plan.num_rows, len(plan.rows), 1),
            num_pairs=max(len(plan.weights), 1),
            num_adapters=max(len(plan.adapters), 1),
            num_shrink_tiles=max(len(plan.shrink_tiles), 1),
            num_expand_tiles=max(len(plan.expand_tiles), 1),
        )


class PlanBuffers:
    """A plan in device memory. ``write`` replaces it by one copy; the addresses stay."""

    def __init__(
        self, capacity: PlanCapacity, *, block_m: int, block_r: int, device: torch.device | str = "cpu"
    ) -> None:
        self.capacity = capacity
        self.block_m = block_m
        self.block_r = block_r
        self._sizes = [
            2,
            capacity.num_shrink_tiles * SHRINK_FIELDS,
            capacity.num_expand_tiles * EXPAND_FIELDS,
            capacity.num_rows,
            capacity.num_adapters,
            capacity.num_pairs,
        ]
        self._device = torch.zeros(sum(self._sizes), dtype=torch.int32, device=device)
        on_cuda = self._device.device.type == "cuda"
        self._staging = [torch.zeros(sum(self._sizes), dtype=torch.int32, pin_memory=on_cuda) for _ in range(2)]
        self._copied: list[torch.Event | None] = [None, None]
        self._turn = 0
        parts = torch.split(self._device, self._sizes)
        self.counts = parts[0]
        """[2] int32: shrink tiles, expand tiles."""
        self.shrink_tiles = parts[1].view(-1, SHRINK_FIELDS)
        self.expand_tiles = parts[2].view(-1, EXPAND_FIELDS)
        self.rows = parts[3]
        """[capacity] int32: rows of the batch, segment by segment."""
        self.adapters = parts[4]
        """[capacity] int32: slots, segment by segment."""
        self.weights = parts[5].view(torch.float32)
        """[capacity] float32, by pair."""
        self.num_rows = 0
        self.max_rank = 0

    @classmethod
    def of(cls, plan: HostPlan, *, device: torch.device | str = "cpu") -> "PlanBuffers":
        """Buffers of just the size of ``plan``, filled with it."""
        buffers = cls(PlanCapacity.of(plan), block_m=plan.block_m, block_r=plan.block_r, device=device)
        buffers.write(plan)
        return buffers

    def write(self, plan: HostPlan) -> None:
        """Replace the plan, by one copy on the current stream.

        Raises:
            ValueError: other block sizes, or more of anything than the capacity; the buffers are then unchanged.
        """
        parts: list[list[int]] = [
            [len(plan.shrink_tiles), len(plan.expand_tiles)],
            [field for tile in plan.shrink_tiles for field in tile],
            [field for tile in plan.expand_tiles for field in tile],
            plan.rows,
            plan.adapters,
        ]
        sizes = [*map(len, parts), len(plan.weights)]
        fits = all(size <= room for size, room in zip(sizes, self._sizes, strict=True))
        if (plan.block_m, plan.block_r) != (self.block_m, self.block_r) or not fits:
            raise ValueError(
                f"a plan of {sizes} entries in blocks {plan.block_m, plan.block_r} does not fit {self.capacity}"
            )
        staging = self._free_staging()
        places = torch.split(staging, self._sizes)
        for place, values in zip(places, parts, strict=False):
            place[: len(values)] = torch.tensor(values, dtype=torch.int32)
        weights = places[-1].view(torch.float32)
        weights[: len(plan.weights)] = torch.tensor(plan.weights, dtype=torch.float32)
        self._device.copy_(staging, non_blocking=True)
        self._mark_copied()
        self.num_rows, self.max_rank = plan.num_rows, plan.max_rank

    def _free_staging(self) -> Tensor:
        """The staging buffer whose last copy is done. Two take turns: the host waits only if it is two steps ahead."""
        self._turn ^= 1
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return self._staging[self._turn]

    def _mark_copied(self) -> None:
        if self._device.device.type == "cuda":
            event = self._copied[self._turn] or torch.Event("cuda")
            event.record()
            self._copied[self._turn] = event
