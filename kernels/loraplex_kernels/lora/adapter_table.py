"""Where the weights of resident adapters lie in the shared page pool, as tables in device memory.

The pool is one flat tensor of pages. An adapter's matrices are kept by *rank slice*: slice r of A is A[r, :], slice r
of B is B[:, r]. Slices are packed into the adapter's pages one after the other, padded to ``SLICE_UNIT`` elements, and
none crosses the end of a page. So an adapter takes its true rank, a page holds slices of any site, and pages need not
be neighbours. The page table that kernels follow has one entry a slice.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.site_group import SiteGroup

SLICE_UNIT = 16
"""Elements; slices begin at multiples of it, so that loads are 16 bytes wide."""
MAX_SITES = 3
MAX_RANK = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupShape:
    """Base linears that read one input. For ``embed_tokens``, ``in_features`` is the vocabulary."""

    in_features: int
    out_sizes: tuple[int, ...]
    """One to three sites, side by side in the output."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteTable:
    """One group's view of the table: what a launch needs. S slots, G sites."""

    shape: GroupShape
    sites: Tensor
    """[S, 3, 3] int32: rank, first A slice, first B slice; rank 0 where the adapter leaves the site alone."""
    scales: Tensor
    """[S, 3] float32: PEFT's effective scaling."""
    slices: Tensor
    """[N] int32: where each slice begins in the pool, in units of ``SLICE_UNIT`` elements."""
    max_rank: int
    """Bound of the ranks in ``sites``, over all slots, that the table allows."""


class AdapterTable:
    """Tables for S adapter slots over all groups of a model. One thread owns it; kernels read it."""

    def __init__(
        self,
        groups: Sequence[GroupShape],
        *,
        num_slots: int,
        num_slices: int,
        page_elements: int,
        max_rank: int = MAX_RANK,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve the tables.

        Args:
            groups: of every layer, then embedding and head: the caller's order, which ``place`` follows.
            num_slots: adapters that may be resident at once.
            num_slices: capacity; an adapter takes twice the sum of its ranks.
            page_elements: size of a page of the pool, in elements.
            max_rank: highest rank that ``place`` takes, up to 512.
            device: where kernels read.

        Raises:
            ValueError: a page that is no multiple of ``SLICE_UNIT``, or too small for the widest slice.
        """
        widest = max(max(group.in_features, *group.out_sizes) for group in groups)
        if page_elements % SLICE_UNIT or page_elements < _padded(widest):
            raise ValueError(f"a page of {page_elements} elements must be a multiple of {SLICE_UNIT} and hold {widest}")
        if not 1 <= max_rank <= MAX_RANK or any(not 1 <= len(group.out_sizes) <= MAX_SITES for group in groups):
            raise ValueError(f"max_rank is {max_rank}, limit {MAX_RANK}; a group has 1 to {MAX_SITES} sites")
        self._groups = tuple(groups)
        self._page_elements = page_elements
        self._max_rank = max_rank
        self._sites = torch.zeros(len(groups), num_slots, MAX_SITES, 3, dtype=torch.int32, device=device)
        self._scales = torch.zeros(len(groups), num_slots, MAX_SITES, dtype=torch.float32, device=device)
        self._slices = torch.zeros(num_slices, dtype=torch.int32, device=device)
        self._free: list[tuple[int, int]] = [(0, num_slices)]
        self._held: dict[int, tuple[int, int]] = {}
        self._slot_ranks = [0] * num_slots

    @property
    def slot_ranks(self) -> tuple[int, ...]:
        """By slot: the highest rank of the adapter at any site; 0 for an empty slot."""
        return tuple(self._slot_ranks)

    def group(self, index: int) -> SiteTable:
        """The view of one group; stays valid, whatever is placed or removed."""
        return SiteTable(
            shape=self._groups[index],
            sites=self._sites[index],
            scales=self._scales[index],
            slices=self._slices,
            max_rank=self._max_rank,
        )

    def num_pages(self, groups: Sequence[SiteGroup | None]) -> int:
        """Pages that ``place`` will need for these weights."""
        cursor = _Cursor(self._page_elements)
        for _, _, matrix in self._matrices(groups):
            for _ in cursor.blocks(*matrix.shape):
                pass
        return cursor.num_pages

    def place(self, slot: int, groups: Sequence[SiteGroup | None], pool: Tensor, page_ids: Sequence[int]) -> None:
        """Copy an adapter into its pages and make it known under ``slot``.

        Args:
            slot: an empty one.
            groups: one per group of the table; None where the adapter does not change it.
            pool: [pages * page_elements], the dtype that kernels compute in.
            page_ids: ``num_pages(groups)`` of them, in any order.

        Raises:
            ValueError: weights that do not fit the group, a rank above the limit, too few pages, a full slice table.
        """
        if self._slot_ranks[slot]:
            raise ValueError(f"slot {slot} holds an adapter; remove it first")
        matrices = list(self._matrices(groups))
        num_slices = sum(len(matrix) for _, _, matrix in matrices)
        if self.num_pages(groups) > len(page_ids):
            raise ValueError(f"the adapter needs {self.num_pages(groups)} pages, {len(page_ids)} given")
        first = self._reserve(slot, num_slices)
        places: list[int] = []
        cursor = _Cursor(self._page_elements)
        sites, scales = (
            torch.zeros_like(self._sites[:, slot], device="cpu"),
            torch.zeros_like(self._scales[:, slot], device="cpu"),
        )
        for (index, site, part), scale, matrix in matrices:
            sites[index, site, 0], sites[index, site, part], scales[index, site] = (
                len(matrix),
                first + len(places),
                scale,
            )
            for page, offset, start, stop in cursor.blocks(*matrix.shape):
                width = _padded(matrix.shape[1])
                begin = page_ids[page] * self._page_elements + offset
                block = pool[begin : begin + (stop - start) * width].view(stop - start, width)
                block[:, : matrix.shape[1]].copy_(matrix[start:stop])
                places += range(
                    begin // SLICE_UNIT, (begin + (stop - start) * width) // SLICE_UNIT, width // SLICE_UNIT
                )
        self._slices[first : first + num_slices].copy_(torch.tensor(places, dtype=torch.int32))
        self._sites[:, slot].copy_(sites)
        self._scales[:, slot].copy_(scales)
        self._slot_ranks[slot] = int(sites[..., 0].max())

    def remove(self, slot: int) -> None:
        """Forget the adapter of ``slot``; its pages are the caller's again once running steps are done."""
        self._sites[:, slot].zero_()
        self._slot_ranks[slot] = 0
        held = self._held.pop(slot, None)
        if held is not None:
            self._free = _joined([*self._free, held])

    def _reserve(self, slot: int, count: int) -> int:
        for at, (start, stop) in enumerate(self._free):
            if stop - start >= count:
                self._free[at] = (start + count, stop)
                self._held[slot] = (start, start + count)
                return start
        raise ValueError(f"no {count} neighbouring entries are free in the slice table of {len(self._slices)}")

    def _matrices(self, groups: Sequence[SiteGroup | None]) -> Iterator[tuple[tuple[int, int, int], float, Tensor]]:
        """((group, site, 1 for A or 2 for B), scale, [rank, features]) in the order of the slices."""
        if len(groups) != len(self._groups):
            raise ValueError(f"{len(groups)} groups of weights for a table of {len(self._groups)}")
        for index, (shape, group) in enumerate(zip(self._groups, groups, strict=True)):
            for expand in group.expands if group is not None else ():
                assert group is not None
                if expand.bias is not None or expand.gain is not None:
                    raise ValueError("the table has no place for LoRA biases and DoRA; only the CPU paths serve them")
                site = _site_of(shape, expand.out_start, expand.out_stop)
                down, up = group.a[expand.rank_start : expand.rank_stop], expand.b.t()
                if down.shape[1] != shape.in_features or not 1 <= len(down) == len(up) <= self._max_rank:
                    raise ValueError(f"A {list(down.shape)}, B^T {list(up.shape)} do not fit {shape}")
                yield (index, site, 1), expand.scale, down
                yield (index, site, 2), expand.scale, up


def _site_of(shape: GroupShape, out_start: int, out_stop: int) -> int:
    start = 0
    for site, size in enumerate(shape.out_sizes):
        if (start, start + size) == (out_start, out_stop):
            return site
        start += size
    raise ValueError(f"outputs {out_start}:{out_stop} are no site of {shape}")


def _padded(width: int) -> int:
    return -(-width // SLICE_UNIT) * SLICE_UNIT


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class _Cursor:
    """Walks an adapter's pages; no slice crosses the end of one."""

    def __init__(self, page_elements: int) -> None:
        self._page_elements = page_elements
        self._page, self._offset = -1, page_elements

    @property
    def num_pages(self) -> int:
        return self._page + 1

    def blocks(self, num_slices: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """(page, offset in it, first slice, one past the last) for slices of ``width`` elements."""
        padded, start = _padded(width), 0
        while start < num_slices:
            if self._offset + padded > self._page_elements:
                self._page, self._offset = self._page + 1, 0
            stop = min(num_slices, start + (self._page_elements - self._offset) // padded)
            yield self._page, self._offset, start, stop
            self._offset += (stop - start) * padded
            start = stop
