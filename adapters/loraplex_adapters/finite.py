"""Finding NaN, infinity and all-zero matrices in raw bytes, in blocks, without widening the whole tensor."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraplex_adapters.tensor import TensorBytes

_UNSIGNED = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}
_EXPONENT_MASK = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}
_MAGNITUDE_MASK = {"F32": 0x7FFF_FFFF, "F16": 0x7FFF, "BF16": 0x7FFF}
_BLOCK_ITEMS = 1 << 20


def is_finite(tensor: TensorBytes) -> bool:
    """Whether no element is NaN or infinite: in IEEE formats, those are the ones with all exponent bits set."""
    mask = _EXPONENT_MASK[tensor.dtype]
    return not any(bool(((block & mask) == mask).any()) for block in _blocks(tensor))


def is_zero(tensor: TensorBytes) -> bool:
    """Whether every element is 0.0 or -0.0."""
    mask = _MAGNITUDE_MASK[tensor.dtype]
    return not any(bool((block & mask).any()) for block in _blocks(tensor))


def _blocks(tensor: TensorBytes) -> Iterator[NDArray[Any]]:
    bits: NDArray[Any] = np.frombuffer(tensor.data, np.dtype(_UNSIGNED[tensor.dtype]))
    return (bits[start : start + _BLOCK_ITEMS] for start in range(0, len(bits), _BLOCK_ITEMS))
