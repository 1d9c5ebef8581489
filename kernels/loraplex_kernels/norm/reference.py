"""The specification of the norms, in the dtype of its arguments (float64 for checks)."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The new residual, rounded to ``dtype`` as it is stored, and its norm."""
    total = (x + residual).to(dtype).to(x.dtype)
    return total, rms_norm(total, weight, eps)


def norm_heads(query_key: Tensor, q_weight: Tensor, k_weight: Tensor, num_heads: int, eps: float) -> Tensor:
    """Norm of each head of [T, H + KH, D]: the first ``num_heads`` by ``q_weight`` [D], the others by ``k_weight``."""
    query, key = query_key[:, :num_heads], query_key[:, num_heads:]
    return torch.cat((rms_norm(query, q_weight, eps), rms_norm(key, k_weight, eps)), 1)
