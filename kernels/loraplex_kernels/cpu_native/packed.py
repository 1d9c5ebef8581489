"""Weights in the layout that the kernels read; see README.md."""

from typing import Final

import torch
from torch import Tensor

from loraplex_kernels.cpu_native import structures
from loraplex_kernels.cpu_native.library import Library

DTYPES: Final = {torch.float32: structures.F32, torch.bfloat16: structures.BF16}
"""What the kernels compute with, as the library numbers them."""


def pack(library: Library, weight: Tensor) -> Tensor:
    """The packed form of a [out_features, in_features] weight of float32 or bfloat16: 1-D, a little padded.

    Raises:
        ValueError: another dtype, device, shape or strides.
    """
    check(weight.dim() == 2 and weight.dtype in DTYPES and weight.numel() > 0, "weight must be [N, K]", weight=weight)
    check_host(weight=weight)
    out_features, in_features = weight.shape
    number = DTYPES[weight.dtype]
    packed = torch.empty(library.packed_elements(number, out_features, in_features), dtype=weight.dtype)
    library.advise_huge(packed.data_ptr(), packed.nbytes)
    library.pack(number, weight.data_ptr(), out_features, in_features, packed.data_ptr())
    return packed


def check(holds: bool, rule: str, **operands: Tensor) -> None:
    """Raise ValueError with the rule and the operands' shapes unless it holds."""
    if not holds:
        given = ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in operands.items())
        raise ValueError(f"{rule}; got {given}")


def check_host(**operands: Tensor) -> None:
    """Raise ValueError unless the kernels, which see addresses alone, may read all operands from end to end."""
    for name, tensor in operands.items():
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            given = f"strides {tensor.stride()} on {tensor.device}"
            raise ValueError(f"{name} must be contiguous in host memory; got {given}")
