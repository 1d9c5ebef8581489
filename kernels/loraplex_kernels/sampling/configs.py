"""Launch parameters of sampling. Chosen on paper; compiled in the tests; not yet timed on a chip."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Of the kernels that hold a row a program."""

    block_v: int
    num_warps: int


_LARGE = SamplingConfig(block_v=4096, num_warps=16)
_SMALL = SamplingConfig(block_v=1024, num_warps=4)
_LARGE_FROM = 16384
ADJUST_BLOCK_V = 1024
ADJUST_NUM_WARPS = 4
COUNT_BLOCK_N = 128


def select(vocab_size: int) -> SamplingConfig:
    """By size of the vocabulary."""
    return _LARGE if vocab_size >= _LARGE_FROM else _SMALL
