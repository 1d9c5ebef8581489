"""A tensor as bytes: no framework, so that bfloat16 passes through unchanged."""

import math
from typing import NamedTuple

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
