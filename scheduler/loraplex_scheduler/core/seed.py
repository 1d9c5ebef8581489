"""Seeds that the core derives: deterministic, 64 bits, well mixed (the finaliser of SplitMix64)."""

import hashlib
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """A bijection of 64-bit integers in which every input bit reaches every output bit."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def request_seed(salt: int, counter: int) -> int:
    """For the ``counter``-th request that brings no seed."""
    return mix(mix(salt) + counter * _GOLDEN_GAMMA)


def sequence_seed(seed: int, index: int) -> int:
    """Of the ``index``-th sequence of a request; the first has the request's own."""
    return seed if index == 0 else mix(seed + index * _GOLDEN_GAMMA)


def stable_hash(*parts: str) -> int:
    """64 bits, the same in every process: Python's own hash of strings differs between them."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")
