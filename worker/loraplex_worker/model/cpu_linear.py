"""A base linear on CPU, its weight reordered once into the blocked layout that oneDNN computes in.

Unpacked, every call pays for strided reads of the weight or for a reorder. Measured on one core of an EPYC with
AVX512-BF16, weights out of cache, 2026-11-23, [3072, 576]: bf16 M=1 619 -> 300 us, M=8 604 -> 260, M=32 1194 -> 660;
fp32 M=8 1671 -> 490, M=32 2801 -> 1210.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_ROWS_HINT = 64
"""oneDNN picks the layout for this many rows; the one for 64 was as fast as any other at 1, 4, 8, 32, 33 and 200."""


class PackedLinear:
    """[T, in_features] -> [T, out_features] over a packed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias
        self._compute: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor, /) -> Tensor:
        return self._compute(x, self._weight, self._bias, "none", [], "")


class PlainLinear:
    """The same over the weight as it is, where this build of torch cannot pack."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.nn.functional.linear(x, self._weight, self._bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of ``dtype`` and computes with them rightly: tried, not guessed.

    The two operations are the ones that torch's own compiler uses for frozen models; they are not documented, so a
    small product is compared with the plain one.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch._C._has_mkldnn:
        return False
    weight = torch.arange(-16, 16, dtype=torch.float32).view(8, 4).to(dtype)
    x = torch.tensor([[1.0, -2.0, 0.5, 4.0], [0.0, 1.0, 2.0, -1.0]], dtype=dtype)
    try:
        packed = PackedLinear(weight, None)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(packed, torch.nn.functional.linear(x, weight))
