"""Adapters as the kernels read them: packed groups, and a table of addresses over all groups of a model."""

import ctypes
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.cpu_native import structures
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.packed import DTYPES, check, check_host, pack
from loraplex_kernels.lora.segments import LoraBatch
from loraplex_kernels.lora.site_group import Expand, SiteGroup


def pack_group(library: Library, group: SiteGroup) -> SiteGroup:
    """The same adapter, its B packed. A stays as it is."""
    check_host(a=group.a)
    expands = tuple(dataclasses.replace(site, b=pack(library, site.b)) for site in group.expands)
    return SiteGroup(a=group.a, expands=expands, is_packed=True)


class AdapterGroups:
    """One adapter over a sequence of groups (say, four a layer). Keeps its tensors alive."""

    def __init__(self, groups: Sequence[SiteGroup | None], out_starts: Sequence[Sequence[int]]) -> None:
        """Work out the table.

        Args:
            groups: packed; None where the adapter changes nothing.
            out_starts: of each group, the first output of each of its base linear's sites.

        Raises:
            ValueError: a group that is not packed, or a site that begins where the base linear has none.
        """
        self._groups = tuple(groups)
        self._table = (structures.Group * len(groups))()
        for entry, group, starts in zip(self._table, groups, out_starts, strict=True):
            if group is not None:
                _fill(entry, group, list(starts))

    @property
    def address(self) -> int:
        """Of the table, valid as long as this object lives."""
        return ctypes.addressof(self._table)

    @property
    def in_features(self) -> tuple[int | None, ...]:
        """Of each group; None where the adapter changes nothing."""
        return tuple(None if group is None else group.a.shape[1] for group in self._groups)


def _fill(entry: structures.Group, group: SiteGroup, starts: list[int]) -> None:
    if not group.is_packed or group.a.dtype not in DTYPES:
        raise ValueError(f"the kernels need packed groups of {list(DTYPES)}; got {group.a.dtype}")
    row_bytes = group.a.shape[1] * group.a.element_size()
    for expand in group.expands:
        if expand.out_start not in starts:
            raise ValueError(f"a site begins at output {expand.out_start}; the base linear's begin at {starts}")
        site = entry.sites[starts.index(expand.out_start)]
        site.a = group.a.data_ptr() + expand.rank_start * row_bytes
        site.b = expand.b.data_ptr()
        site.rank = _checked_rank(expand)
        site.scale = expand.scale
        site.dtype = DTYPES[group.a.dtype]
        for kind, vector in ((structures.BIAS, expand.bias), (structures.DORA, expand.gain)):
            if vector is not None:
                site.kind, site.vector = kind, _checked(vector, group, expand).data_ptr()


def _checked_rank(expand: Expand) -> int:
    rank = expand.rank_stop - expand.rank_start
    if not 0 < rank <= structures.MAX_RANK or (expand.bias is not None and expand.gain is not None):
        raise ValueError(f"a site has a rank of 1 to {structures.MAX_RANK}, got {rank}, and a bias or a gain, not both")
    return rank


def _checked(vector: Tensor, group: SiteGroup, expand: Expand) -> Tensor:
    check_host(vector=vector)
    fits = vector.dtype == group.a.dtype and vector.shape == (expand.out_stop - expand.out_start,)
    check(fits, "a bias or gain is [out_features] of the adapter's dtype", vector=vector)
    return vector


class SegmentRows:
    """The segments of a batch, their rows spelled out. None: a base batch."""

    def __init__(self, batch: LoraBatch | None) -> None:
        segments = [] if batch is None else [segment for segment in batch.segments if segment.num_rows]
        rows = [torch.arange(part.start, part.stop) if part.index is None else part.index for part in segments]
        weights = [
            torch.full((part.num_rows,), part.weight) if part.row_weights is None else part.row_weights.view(-1)
            for part in segments
        ]
        self.adapters = [segment.adapter for segment in segments]
        """Adapter index of each segment."""
        self.starts = torch.tensor([0, *(len(part) for part in rows)]).cumsum(0).to(torch.int32)
        self.rows = torch.cat(rows).to(torch.int32) if rows else torch.empty(0, dtype=torch.int32)
        self.row_weights = torch.cat(weights).to(torch.float32) if rows else torch.empty(0)


class LoraStep:
    """The adapters of one step. Keeps what it points to alive."""

    def __init__(self, segments: SegmentRows, adapters: Sequence[AdapterGroups]) -> None:
        """``adapters`` by the adapter index that the batch uses."""
        self._segments, self._adapters = segments, tuple(adapters)
        self._tables = torch.tensor([adapters[index].address for index in segments.adapters], dtype=torch.int64)
        self.struct = structures.Lora(
            num_segments=len(segments.adapters),
            starts=segments.starts.data_ptr(),
            rows=segments.rows.data_ptr(),
            row_weights=segments.row_weights.data_ptr(),
            tables=self._tables.data_ptr(),
        )
