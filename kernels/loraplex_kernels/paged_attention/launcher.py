"""Attention of decode rows and of prefill chunks over pages."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.operands import FLOATS, ceil_div, next_power_of_2, require, require_one_device
from loraplex_kernels.paged_attention import configs
from loraplex_kernels.triton_kernels import triton_kernels

_LOG2_E = 1.4426950408889634
_MAX_GROUP = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeScratch:
    """Parts of decode rows. Launches of one stream may share it."""

    parts: Tensor
    """[elements] float32."""
    sums: Tensor
    """[elements] float32."""

    @classmethod
    def reserve(
        cls, *, num_sequences: int, num_heads: int, head_dim: int, splits: int, device: torch.device | str = "cpu"
    ) -> "DecodeScratch":
        """Room for ``num_sequences`` rows."""
        rows = num_sequences * num_heads * splits
        parts = torch.empty(rows * head_dim, dtype=torch.float32, device=device)
        return cls(parts=parts, sums=torch.empty(rows, dtype=torch.float32, device=device))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTiles:
    """How the rows of a step's chunks are cut up. In device memory, so a captured launch may see others."""

    starts: Tensor
    """[B + 1] int32: first row of each sequence."""
    tiles: Tensor
    """[capacity, 2] int32: sequence, first row within its chunk."""
    num_tiles: Tensor
    """[1] int32."""
    tile_rows: int

    @classmethod
    def of(
        cls, num_rows: Sequence[int], *, block_m: int, group: int, device: torch.device | str = "cpu"
    ) -> "PrefillTiles":
        """Cut chunks of ``num_rows`` tokens, one after the other, for tiles of ``block_m`` product rows."""
        tile_rows = block_m // group
        tiles = [(index, start) for index, rows in enumerate(num_rows) for start in range(0, rows, tile_rows)]
        starts = [0]
        for rows in num_rows:
            starts.append(starts[-1] + rows)
        return cls(
            starts=torch.tensor(starts, dtype=torch.int32).to(device),
            tiles=torch.tensor(tiles, dtype=torch.int32).view(-1, 2).to(device),
            num_tiles=torch.tensor([len(tiles)], dtype=torch.int32).to(device),
            tile_rows=tile_rows,
        )


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    scratch: DecodeScratch | None,
    *,
    splits: int,
    window: int | None = None,
    score_scale: float | None = None,
) -> None:
    """One row a sequence, over its whole context.

    Args:
        query: [B, H, D].
        keys: [pages, KH, page_size, D], may be strided but for the last dimension; KH divides H, at most 16 heads each.
        values: the same strides.
        page_table: [B, columns] int32, in token order; entries past a context are not read.
        context_lens: [B] int32, this row included; a row of 0 is a free place of the batch and gives zeros.
        out: [B, H, D], every element is written.
        scratch: room for the parts; may be None where ``splits`` is 1.
        splits: parts of each context, see ``configs.num_splits``.
        window: how many of the last positions a row sees, itself included; None = all.
        score_scale: 1 / sqrt(D) if None.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    _check(query, keys, values, page_table, context_lens, out, window)
    num_rows, num_heads, head_dim = query.shape
    require(page_table.shape[0] == num_rows, "one row a sequence", query=query, page_table=page_table)
    if num_rows == 0:
        return
    split = splits > 1
    parts, sums = (scratch.parts, scratch.sums) if split and scratch is not None else (out, out)
    enough = not split or (parts.numel() >= query.numel() * splits and parts.dtype == torch.float32)
    require(enough and splits >= 1, f"the scratch must hold {splits} parts of each row", parts=parts)
    num_kv_heads, page_size = keys.shape[1:3]
    config = configs.decode(head_dim, query.dtype)
    group, block_d = num_heads // num_kv_heads, max(16, next_power_of_2(head_dim))
    kernels = triton_kernels("paged_attention")
    kernels.decode_kernel[(num_rows, num_kv_heads, splits)](
        q_ptr=query,
        k_ptr=keys,
        v_ptr=values,
        table_ptr=page_table,
        context_ptr=context_lens,
        out_ptr=out,
        part_ptr=parts,
        lse_ptr=sums,
        stride_q_t=query.stride(0),
        stride_q_h=query.stride(1),
        stride_k_p=keys.stride(0),
        stride_k_h=keys.stride(1),
        stride_k_n=keys.stride(2),
        stride_table_b=page_table.stride(0),
        stride_out_t=out.stride(0),
        stride_out_h=out.stride(1),
        window=window or 0,
        score_scale=_LOG2_E * (score_scale or 1 / math.sqrt(head_dim)),
        KH=num_kv_heads,
        G=group,
        D=head_dim,
        PAGE=page_size,
        SPLITS=splits,
        BLOCK_M=max(16, next_power_of_2(group)),
        BLOCK_D=block_d,
        BLOCK_N=config.block_n,
        HAS_WINDOW=window is not None,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
    )
    if split:
        kernels.combine_kernel[(num_rows, num_heads)](
            part_ptr=parts,
            lse_ptr=sums,
            out_ptr=out,
            stride_out_t=out.stride(0),
            stride_out_h=out.stride(1),
            H=num_heads,
            D=head_dim,
            SPLITS=splits,
            BLOCK_SPLITS=next_power_of_2(splits),
            BLOCK_D=block_d,
            num_warps=2,
        )


def prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    tiles: PrefillTiles,
    config: configs.PrefillConfig,
    *,
    window: int | None = None,
    score_scale: float | None = None,
) -> None:
    """Chunks of many sequences, each over its prefix and itself, whose keys are in the pages already.

    Args:
        query: [T, H, D], the chunks one after the other.
        keys: [pages, KH, page_size, D], may be strided but for the last dimension; KH divides H, at most 16 heads each.
        values: the same strides.
        page_table: [B, columns] int32, in token order; entries past a context are not read.
        context_lens: [B] int32, tokens of each sequence, its chunk included.
        out: [T, H, D]; the rows of the chunks are written.
        tiles: made with ``config.block_m``.
        config: see ``configs.prefill``.
        window: how many of the last positions a row sees, itself included; None = all.
        score_scale: 1 / sqrt(D) if None.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    _check(query, keys, values, page_table, context_lens, out, window)
    _, num_heads, head_dim = query.shape
    num_kv_heads, page_size = keys.shape[1:3]
    group = num_heads // num_kv_heads
    fits = tiles.tile_rows == config.block_m // group > 0 and len(tiles.starts) == len(context_lens) + 1
    require(fits, "tiles were cut for another block or batch", starts=tiles.starts, context_lens=context_lens)
    require_one_device(query=query, starts=tiles.starts, tiles=tiles.tiles, num_tiles=tiles.num_tiles)
    if query.shape[0] == 0 or tiles.tiles.shape[0] == 0:
        return
    triton_kernels("paged_attention").prefill_kernel[(tiles.tiles.shape[0], num_kv_heads)](
        q_ptr=query,
        k_ptr=keys,
        v_ptr=values,
        table_ptr=page_table,
        context_ptr=context_lens,
        starts_ptr=tiles.starts,
        tiles_ptr=tiles.tiles,
        n_tiles_ptr=tiles.num_tiles,
        out_ptr=out,
        stride_q_t=query.stride(0),
        stride_q_h=query.stride(1),
        stride_k_p=keys.stride(0),
        stride_k_h=keys.stride(1),
        stride_k_n=keys.stride(2),
        stride_table_b=page_table.stride(0),
        stride_out_t=out.stride(0),
        stride_out_h=out.stride(1),
        window=window or 0,
        score_scale=_LOG2_E * (score_scale or 1 / math.sqrt(head_dim)),
        G=group,
        D=head_dim,
        PAGE=page_size,
        TILE_T=tiles.tile_rows,
        BLOCK_M=config.block_m,
        BLOCK_D=max(16, next_power_of_2(head_dim)),
        BLOCK_N=config.block_n,
        HAS_WINDOW=window is not None,
        STAGES=config.num_stages,
        num_warps=config.num_warps,
    )


def num_blocks(context_len: int, page_size: int) -> int:
    """Columns of a page table that a context needs."""
    return ceil_div(context_len, page_size)


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    window: int | None,
) -> None:
    kv = {"keys": keys, "values": values}
    require(query.dim() == 3 and out.shape == query.shape, "query and out must be [T, H, D]", query=query, out=out)
    fits = keys.dim() == 4 and keys.shape == values.shape and keys.stride() == values.stride()
    require(fits, "keys and values must be [pages, KH, page_size, D] with the same strides", **kv)
    _, num_kv_heads, _, head_dim = keys.shape
    group, rest = divmod(query.shape[1], num_kv_heads)
    fits = rest == 0 and 1 <= group <= _MAX_GROUP and query.shape[2] == head_dim <= 256
    require(fits, f"1 to {_MAX_GROUP} query heads to a key head, of one size up to 256", query=query, **kv)
    require(
        query.dtype == keys.dtype == values.dtype == out.dtype and query.dtype in FLOATS,
        "one dtype",
        query=query,
        out=out,
        **kv,
    )
    last = query.stride(2) == keys.stride(3) == out.stride(2) == 1
    require(last or query.numel() == 0, "the last dimension must be contiguous", query=query, out=out, **kv)
    ints = page_table.dtype == context_lens.dtype == torch.int32 and page_table.dim() == 2 and context_lens.dim() == 1
    ints = ints and page_table.shape[0] == context_lens.shape[0] and context_lens.is_contiguous()
    ints = ints and (page_table.stride(1) == 1 or page_table.shape[1] <= 1)
    require(
        ints,
        "page_table must be [B, columns], context_lens [B], int32",
        page_table=page_table,
        context_lens=context_lens,
    )
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; a row sees at least itself")
    require_one_device(query=query, keys=keys, values=values, page_table=page_table, context_lens=context_lens, out=out)
