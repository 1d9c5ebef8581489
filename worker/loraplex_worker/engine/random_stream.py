"""The random number of one output token, as a pure function of (seed, position).

    uniform(seed, position) = (mix(mix(seed + G) ^ mix(position + 2 G)) >> 11) * 2**-53

``mix`` is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
2014, with Stafford's variant 13 constants), G its golden gamma; all arithmetic is on unsigned 64-bit integers. There is
no state: a sequence that is preempted, moved or replayed draws the same numbers, whatever else is in its batch, on
every platform.
"""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_TWO_POW_MINUS_53 = 2.0**-53


def mix(x: int) -> int:
    """A bijection on unsigned 64-bit integers in which each input bit changes about half of the output bits."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, position: int) -> float:
    """A double in [0, 1) with 53 random bits.

    Args:
        seed: unsigned 64 bits, the request's.
        position: index of the token in the request's output.
    """
    key = mix(seed + _GOLDEN_GAMMA)
    return (mix(key ^ mix(position + 2 * _GOLDEN_GAMMA)) >> 11) * _TWO_POW_MINUS_53
