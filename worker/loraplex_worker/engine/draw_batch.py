"""Draw one token for each row of logits, on any device.

Temperature, filters, then the inverse of the cumulative distribution.

Each filter is a floor under the scaled logits z = (logit - highest logit) / temperature:

    top_k   the k-th highest z
    top_p   the lowest z of the smallest set of likeliest tokens that holds the share p of what top_k left
    min_p   log(min_p): a token must be at least min_p times as likely as the likeliest

Tokens with z at or above the highest floor stay, so ties at a floor stay or go together, and no filter empties a row. A
uniform u picks the first token, in the order of token ids, at which the cumulated weight exp(z) exceeds u times the
total. The order of ids, unlike the order of probabilities, does not change where logits move by a rounding error.

A row's result depends on the row alone: sums run over fixed blocks, so neither the other rows nor their number matter.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_worker.engine.command import Sampling

_BLOCK = 128
# Below this, float32 division gives nothing but the highest logit anyway, or 0 / 0.
_MIN_TEMPERATURE = 1e-6
# Nuclei are mostly small; a full sort of a large vocabulary costs 30 times a short topk.
_NUCLEUS_SIZES = (64, 512, 4096)


def draw_batch(logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> list[int | None]:
    """Pick a token in each row.

    Args:
        logits: [N, V] float32, none NaN or +inf; -inf = not allowed.
        samplings: N, each with a temperature above 0.
        uniforms: N numbers in [0, 1).

    Returns:
        N token ids; None where a row allows no token.
    """
    best = logits.amax(dim=1, keepdim=True)
    is_dead = (best == -torch.inf).squeeze(1)
    z = logits - best
    if any(sampling.temperature != 1.0 for sampling in samplings):
        z /= _column(z, [max(sampling.temperature, _MIN_TEMPERATURE) for sampling in samplings])
    any_dead = bool(is_dead.any())
    if any_dead:
        z[is_dead] = 0.0
    floor = _floor(z, samplings)
    if floor is not None:
        z.masked_fill_(z < floor, -torch.inf)
    tokens: list[int] = _invert(_weights(z), torch.tensor(uniforms, dtype=torch.float64, device=z.device)).tolist()
    if not any_dead:
        return list(tokens)
    return [None if dead else token for token, dead in zip(tokens, is_dead.tolist(), strict=True)]


def _column(like: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _floor(z: Tensor, samplings: Sequence[Sampling]) -> Tensor | None:
    vocab_size = z.shape[1]
    k_rows = [row for row, sampling in enumerate(samplings) if 0 < sampling.top_k < vocab_size]
    p_rows = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1.0]
    if not k_rows and not p_rows and all(sampling.min_p == 0.0 for sampling in samplings):
        return None
    floor = _column(z, [math.log(sampling.min_p) if sampling.min_p else -math.inf for sampling in samplings])
    if k_rows:
        top_k_floor = torch.full_like(floor, -torch.inf)
        top_k_floor[k_rows] = _top_k_floor(z[k_rows], [samplings[row].top_k for row in k_rows])
        if p_rows:
            # The nucleus is a share of what top_k left.
            z = z.masked_fill(z < top_k_floor, -torch.inf)
        floor = torch.maximum(floor, top_k_floor)
    if p_rows:
        nucleus = _top_p_floor(z[p_rows], [samplings[row].top_p for row in p_rows])
        floor[p_rows] = torch.maximum(floor[p_rows], nucleus)
    return floor


def _top_k_floor(z: Tensor, ks: list[int]) -> Tensor:
    values = z.topk(max(ks), dim=1).values
    at = torch.tensor(ks, device=z.device).unsqueeze(1) - 1
    return values.gather(1, at)


def _top_p_floor(z: Tensor, ps: list[float]) -> Tensor:
    target = _column(z.double(), ps) * _cumulated_blocks(_weights(z))[:, -1:]
    floor = torch.empty_like(target, dtype=z.dtype)
    open_rows = torch.arange(len(ps), device=z.device)
    for size in (*_NUCLEUS_SIZES, z.shape[1]):
        size = min(size, z.shape[1])
        values = z[open_rows].topk(size, dim=1).values
        cumulated = values.double().exp().cumsum(1)
        is_done = (cumulated[:, -1:] >= target[open_rows]).squeeze(1) | (size == z.shape[1])
        last = (cumulated < target[open_rows]).sum(1, keepdim=True).clamp(max=size - 1)
        floor[open_rows[is_done]] = values.gather(1, last)[is_done]
        open_rows = open_rows[~is_done]
        if not open_rows.numel():
            break
    return floor


def _weights(z: Tensor) -> Tensor:
    """exp(z) as [N, blocks, _BLOCK], padded with zeros."""
    num_rows, vocab_size = z.shape
    if vocab_size % _BLOCK == 0:
        return z.exp().view(num_rows, -1, _BLOCK)
    weights = z.new_zeros(num_rows, -(-vocab_size // _BLOCK) * _BLOCK)
    weights[:, :vocab_size] = z.exp()
    return weights.view(num_rows, -1, _BLOCK)


def _cumulated_blocks(weights: Tensor) -> Tensor:
    return weights.sum(2).double().cumsum(1)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    cumulated = _cumulated_blocks(weights)
    target = uniforms.unsqueeze(1) * cumulated[:, -1:]
    block = torch.searchsorted(cumulated, target, right=True)
    before = torch.where(block > 0, cumulated.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = weights[torch.arange(len(weights), device=weights.device), block.squeeze(1)].double().cumsum(1)
    offset = torch.searchsorted(inner, target - before, right=True)
    # The block's sum in float32 may exceed its sum in float64 by a rounding: then its last token with weight is meant.
    last = (inner < inner[:, -1:]).sum(1, keepdim=True)
    return (block * _BLOCK + torch.minimum(offset, last)).squeeze(1)
