"""Launch parameters of paged attention: data by device, head size and shape bucket. Nothing is tuned while serving.

Chosen on paper, from registers and bytes in flight, and compiled in the tests; not yet timed on a chip.
"""

import dataclasses

import torch

from loraplex_kernels.chip import Chip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """Blocks are keys."""

    block_n: int
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    """Blocks are rows of the product (tokens times query heads of a group) and keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


_DECODE = {
    64: DecodeConfig(block_n=128, num_warps=4, num_stages=3),
    128: DecodeConfig(block_n=64, num_warps=4, num_stages=3),
    256: DecodeConfig(block_n=32, num_warps=4, num_stages=3),
}
_PREFILL = {
    (80, 64): PrefillConfig(block_m=128, block_n=64, num_warps=4, num_stages=3),
    (80, 128): PrefillConfig(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (80, 256): PrefillConfig(block_m=64, block_n=32, num_warps=8, num_stages=2),
    (90, 64): PrefillConfig(block_m=128, block_n=128, num_warps=8, num_stages=3),
    (90, 128): PrefillConfig(block_m=128, block_n=128, num_warps=8, num_stages=2),
    (90, 256): PrefillConfig(block_m=64, block_n=64, num_warps=8, num_stages=2),
}
_FLOAT32_DECODE = DecodeConfig(block_n=16, num_warps=4, num_stages=2)
_FLOAT32_PREFILL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)
"""float32 is for checks."""
_SMALL_CHUNK_M = 16
_MAX_SPLITS = 32
_PROGRAMS_PER_SM = 4
_KEYS_PER_SPLIT = 256
"""Below that, reading the parts again costs more than the split saves."""


def _bucket(head_dim: int) -> int:
    return 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256


def decode(head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """The config for one row a sequence."""
    return _FLOAT32_DECODE if dtype == torch.float32 else _DECODE[_bucket(head_dim)]


def num_splits(chip: Chip, num_sequences: int, num_kv_heads: int, max_context: int) -> int:
    """Into how many parts the keys of a sequence go, so that there are some programs for each multiprocessor.

    Depends on capacities alone, so a captured launch keeps it.
    """
    wanted = -(-_PROGRAMS_PER_SM * chip.num_sms // max(num_sequences * num_kv_heads, 1))
    splits = 1
    while splits < min(wanted, _MAX_SPLITS, -(-max_context // _KEYS_PER_SPLIT)):
        splits *= 2
    return splits


def prefill(chip: Chip, head_dim: int, max_rows: int, group: int, dtype: torch.dtype) -> PrefillConfig:
    """The config for chunks of at most ``max_rows`` tokens, ``group`` query heads to a key head."""
    if dtype == torch.float32:
        return dataclasses.replace(_FLOAT32_PREFILL, block_m=max(16, 1 << (group - 1).bit_length()))
    config = _PREFILL[90 if chip.capability >= 90 else 80, _bucket(head_dim)]
    if max_rows * group <= _SMALL_CHUNK_M:
        return dataclasses.replace(config, block_m=_SMALL_CHUNK_M, num_warps=4)
    return config
