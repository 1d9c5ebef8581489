"""Launch parameters of the LoRA kernel: data by rows per adapter, ranks and dtype. Nothing is tuned while serving.

Chosen on paper, from bytes in flight and registers (see README.md), and compiled in the tests; not yet timed on a chip.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import torch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """One variant. Blocks are elements."""

    block_m: int
    """Rows of a tile: 1 and 4 are the GEMV paths, 16 and more use matrix instructions."""
    block_r: int
    """Ranks of a shrink tile."""
    block_k: int
    block_n: int
    """Outputs of an expand item."""
    expand_r: int
    """Ranks that the expand takes at once."""
    splits: int
    """Parts that the input features are cut into, so that few rows still fill the chip."""
    num_warps: int
    num_stages: int
    """Blocks of A under way at once in the shrink."""
    expand_stages: int
    programs_per_sm: int
    """Programs that one multiprocessor must hold at once: the grid is this times their number."""


_GEMV = {
    1: LoraConfig(
        block_m=1,
        block_r=16,
        block_k=256,
        block_n=256,
        expand_r=32,
        splits=8,
        num_warps=4,
        num_stages=3,
        expand_stages=1,
        programs_per_sm=4,
    ),
    4: LoraConfig(
        block_m=4,
        block_r=16,
        block_k=128,
        block_n=256,
        expand_r=16,
        splits=4,
        num_warps=4,
        num_stages=4,
        expand_stages=1,
        programs_per_sm=3,
    ),
}
_TILED = {
    16: LoraConfig(
        block_m=16,
        block_r=16,
        block_k=128,
        block_n=128,
        expand_r=16,
        splits=4,
        num_warps=4,
        num_stages=4,
        expand_stages=2,
        programs_per_sm=4,
    ),
    64: LoraConfig(
        block_m=64,
        block_r=32,
        block_k=64,
        block_n=128,
        expand_r=32,
        splits=1,
        num_warps=4,
        num_stages=4,
        expand_stages=2,
        programs_per_sm=2,
    ),
}
_TILED_FP32 = {
    16: dataclasses.replace(_TILED[16], block_k=64),
    64: dataclasses.replace(_TILED[64], block_r=16, expand_r=16, block_k=32, block_n=64),
}
_GEMV_ROWS = 4
_SMALL_TILE_ROWS = 32


def select(rows_per_adapter: int, dtype: torch.dtype) -> LoraConfig:
    """The config for a step whose busiest set of adapters has ``rows_per_adapter`` rows."""
    tiled = _TILED_FP32 if dtype == torch.float32 else _TILED
    if rows_per_adapter <= 1:
        return _GEMV[1]
    if rows_per_adapter <= _GEMV_ROWS:
        return _GEMV[4]
    return tiled[16] if rows_per_adapter <= _SMALL_TILE_ROWS else tiled[64]


def every() -> Iterator[LoraConfig]:
    """Each config that ``select`` can return, once."""
    yield from dict.fromkeys(itertools.chain(_GEMV.values(), _TILED.values(), _TILED_FP32.values()))
