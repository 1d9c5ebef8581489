"""The draw of ``draw_batch`` for one row in memory: on a CPU, rows that stay in the cache beat large temporaries.

Same rules (see there), but a filter's floor is a weight, w = exp(z), and not a z. On 256 rows of 32000 random logits a
row took 0.09 ms of one core with temperature alone and 0.22 ms with top_p; the batched form took 0.35 ms and, since it
sorts the row where the nucleus is wide, 8 ms (on a busier machine).
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from loraplex_worker.engine.command import Sampling

Row = npt.NDArray[np.float32]
_BLOCK = 128
_MIN_TEMPERATURE = 1e-6
# The upper 12 bits of a positive float32, exponent and 3 bits of mantissa: a bucket spans at most 12.5 %.
_BUCKET_SHIFT = 20


def draw_row(logits: Row, sampling: Sampling, uniform: float, scratch: Row) -> int | None:
    """Pick one token.

    Args:
        logits: [V], none NaN or +inf; -inf = not allowed. Not changed.
        sampling: its temperature is above 0.
        uniform: in [0, 1).
        scratch: [V], overwritten.

    Returns:
        None where no token is allowed.
    """
    best = logits.max()
    if best == -math.inf:
        return None
    weights = np.subtract(logits, best, out=scratch)
    if sampling.temperature != 1.0:
        weights /= np.float32(max(sampling.temperature, _MIN_TEMPERATURE))
    np.exp(weights, out=weights)
    _filter(weights, sampling)
    return _invert(weights, uniform)


def _filter(weights: Row, sampling: Sampling) -> None:
    """Zero what top_k, then top_p of what that left, and min_p take out."""
    kept = weights
    if 0 < sampling.top_k < len(weights):
        # torch.topk is 6 times as fast here as numpy.partition.
        highest: Row = torch.from_numpy(weights).topk(sampling.top_k).values.numpy()
        num_kept = _cut(weights, highest[-1])
        # Ties at the edge stay too; then the nucleus is looked for among all.
        kept = highest if num_kept == sampling.top_k else weights
    if sampling.top_p < 1.0:
        _cut(weights, _nucleus_floor(kept, sampling.top_p))
    if sampling.min_p > 0.0:
        _cut(weights, sampling.min_p)


def _cut(weights: Row, floor: float) -> int:
    """Zero what is below ``floor``; returns how many are not."""
    is_kept = weights >= np.float32(floor)
    np.multiply(weights, is_kept, out=weights)
    return int(np.count_nonzero(is_kept))


def _nucleus_floor(weights: Row, top_p: float) -> float:
    """The lowest weight of the nucleus: find its bucket by mass, then sort that bucket alone."""
    buckets = weights.view(np.int32) >> _BUCKET_SHIFT
    mass = np.bincount(buckets, weights=weights)
    above = np.cumsum(mass[::-1])
    target = top_p * above[-1]
    from_top = int(np.searchsorted(above, target))
    bucket = len(mass) - 1 - from_top
    members = np.sort(weights[buckets == bucket])[::-1]
    before = above[from_top - 1] if from_top else 0.0
    last = int(np.searchsorted(before + np.cumsum(members, dtype=np.float64), target))
    return float(members[min(last, len(members) - 1)])


def _invert(weights: Row, uniform: float) -> int:
    cumulated = np.cumsum(_block_sums(weights), dtype=np.float64)
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated, target, side="right"))
    before = cumulated[block - 1] if block else 0.0
    start = block * _BLOCK
    inner = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    offset = int(np.searchsorted(inner, target - before, side="right"))
    # The block's sum in float32 may exceed its sum in float64 by a rounding: then its last token with weight is meant.
    last = int(np.searchsorted(inner, inner[-1]))
    return start + min(offset, last)


def _block_sums(weights: Row) -> Row:
    whole = len(weights) // _BLOCK * _BLOCK
    sums: Row = weights[:whole].reshape(-1, _BLOCK).sum(axis=1)
    if whole == len(weights):
        return sums
    joined: Row = np.append(sums, weights[whole:].sum())
    return joined
