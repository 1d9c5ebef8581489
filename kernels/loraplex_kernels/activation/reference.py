"""The specification of the activation, in the dtype of its argument (float64 for checks)."""

import torch
from torch import Tensor


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: silu of the first half times the second half."""
    gate, up = gate_up.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up
