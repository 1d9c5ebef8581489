"""A tensor as bytes: no framework, so that bfloat16 passes through unchanged."""

import math
from typing import NamedTuple

import numpy as np

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that LoRA weights may have, by their safetensors name, and the bytes of one element."""


class TensorBytes(NamedTuple):
    """One tensor: row-major little-endian ``data`` of ``shape``; a plain (dtype, shape, data) tuple to callers."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def widened(tensor: TensorBytes) -> TensorBytes:
    """The same numbers as F32."""
    if tensor.dtype == "F32":
        return tensor
    if tensor.dtype == "F16":
        return TensorBytes("F32", tensor.shape, np.frombuffer(tensor.data, "<f2").astype("<f4").tobytes())
    bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << np.uint32(16)
    return TensorBytes("F32", tensor.shape, bits.astype("<u4").tobytes())
