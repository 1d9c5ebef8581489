"""The specification of sampling: one row at a time, in the dtype of the logits (float64 for checks)."""

import math

import torch
from torch import Tensor

from loraplex_kernels.sampling.rows import PROMPT_BIT, RowSampling

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIN_TEMPERATURE = 1e-6


def uniform(seed: int, position: int) -> float:
    """The random number of one token, in [0, 1): splitmix64's finaliser over seed and position."""
    key = _mix(seed + _GOLDEN_GAMMA)
    return (_mix(key ^ _mix(position + 2 * _GOLDEN_GAMMA)) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def adjust(logits: Tensor, row: RowSampling, counts: Tensor | None, mask: Tensor | None) -> Tensor:
    """Penalties, then bias, then mask.

    Args:
        logits: [V].
        row: the parameters.
        counts: [V] int32, see ``History``; None where there is no penalty.
        mask: [V] bool, True = may be chosen; None = all.
    """
    out = logits.clone()
    if row.has_penalty:
        assert counts is not None
        num_output = (counts % PROMPT_BIT).to(out.dtype)
        seen = counts != 0 if row.repetition_penalty != 1.0 else num_output > 0
        scaled = torch.where(out < 0, out * row.repetition_penalty, out / row.repetition_penalty)
        scaled = scaled - row.frequency_penalty * num_output - row.presence_penalty * (num_output > 0)
        out = torch.where(seen, scaled, out)
    for token, value in row.bias:
        out[token] += value
    if mask is not None:
        out[~mask] = -math.inf
    return out


def kept(logits: Tensor, row: RowSampling) -> Tensor:
    """[V] weights exp((logit - highest) / temperature) of the tokens that top_k, top_p and min_p leave, else 0."""
    z = (logits - logits.max()) / max(row.temperature, _MIN_TEMPERATURE)
    floor = torch.tensor(math.log(row.min_p) if row.min_p else -math.inf, dtype=z.dtype)
    ordered = z.sort(descending=True).values
    if 0 < row.top_k < len(z):
        floor = torch.maximum(floor, ordered[row.top_k - 1])
        ordered = ordered[ordered >= ordered[row.top_k - 1]]
    if row.top_p < 1.0:
        cumulated = ordered.double().exp().cumsum(0)
        last = int((cumulated < row.top_p * cumulated[-1]).sum())
        floor = torch.maximum(floor, ordered[min(last, len(ordered) - 1)])
    return torch.where(z >= floor, z.exp(), 0.0)


def choose(raw: Tensor, row: RowSampling, counts: Tensor | None = None, mask: Tensor | None = None) -> int:
    """The next token; -1 where the logits are not all finite or no token is allowed."""
    if not bool(raw.isfinite().all()):
        return -1
    logits = adjust(raw, row, counts, mask)
    if float(logits.max()) == -math.inf:
        return -1
    if row.temperature == 0.0:
        return int(torch.nonzero(logits == logits.max())[0])
    weights = kept(logits, row).double()
    cumulated = weights.cumsum(0)
    token = int((cumulated <= uniform(row.seed, row.position) * cumulated[-1]).sum())
    return min(token, int(torch.nonzero(weights)[-1]))


def logprobs(raw: Tensor, token: int, num_top: int) -> tuple[float, int, list[tuple[int, float]]]:
    """(log-probability, rank, the likeliest tokens), all of the raw logits; ties to the lowest id."""
    values = torch.log_softmax(raw, 0)
    order = raw.argsort(descending=True, stable=True)[:num_top].tolist()
    rank = int((raw > raw[token]).sum()) + 1
    return float(values[token]), rank, [(index, float(values[index])) for index in order]
