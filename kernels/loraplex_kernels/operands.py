"""Checks that launchers make before a kernel may touch memory."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels read and write; their sums are float32."""


def require(holds: bool, rule: str, **operands: Tensor) -> None:
    """Raise ValueError with the rule and every operand's dtype, shape, strides and device unless it holds."""
    if not holds:
        raise ValueError(f"{rule}; got {', '.join(_describe(name, tensor) for name, tensor in operands.items())}")


def require_one_device(**operands: Tensor) -> None:
    """Raise ValueError unless all operands are on one device."""
    devices = {tensor.device for tensor in operands.values()}
    require(len(devices) == 1, "all operands must be on one device", **operands)


def _describe(name: str, tensor: Tensor) -> str:
    return f"{name} {tensor.dtype} {list(tensor.shape)} strides {list(tensor.stride())} on {tensor.device}"


def next_power_of_2(number: int) -> int:
    """The lowest power of two that is not below ``number`` (1 for 0)."""
    return 1 << max(number - 1, 0).bit_length()


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)
