"""Rotary position embedding: inverse frequencies of each scaling rule, and the cos/sin rows of a step.

The rules are those of transformers (``modeling_rope_utils``), so that logits agree: linear (position interpolation),
llama3 (by wavelength band) and yarn (NTK by parts, arXiv 2309.00071).
"""

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Everything that decides the rotation angles; fields that the rule has no use for are None."""

    rope_type: str
    """"default", "linear", "llama3" or "yarn"."""
    theta: float
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """[head_dim / 2] float32 inverse frequencies, and the factor that multiplies cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "default":
        return plain, 1.0
    if rope.rope_type == "linear":
        return plain / _given(rope.factor), 1.0
    if rope.rope_type == "llama3":
        return _llama3(plain, rope), 1.0
    assert rope.rope_type == "yarn", rope.rope_type
    return _yarn(rope.theta**exponents, rope, head_dim), _yarn_attention_factor(rope)


def _given(value: float | None) -> float:
    assert value is not None
    return value


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    factor, original = _given(rope.factor), _given(rope.original_max_position_embeddings)
    low, high = _given(rope.low_freq_factor), _given(rope.high_freq_factor)
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, blended)
    return torch.where(wavelength < original / high, plain, scaled)


def _yarn(wavelengths: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Interpolate the slow dimensions, keep the fast ones, ramp linearly in between."""
    factor, original = _given(rope.factor), _given(rope.original_max_position_embeddings)

    def dimension_of(num_rotations: float) -> float:
        return head_dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast or 32), dimension_of(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = _given(rope.factor)
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class RotaryTable:
    """cos and signed sin of the positions of one step."""

    def __init__(self, rope: RopeConfig, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        inverse, self._attention_factor = inverse_frequencies(rope, head_dim)
        self._inverse = inverse.to(device)
        self._dtype = dtype

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """For [T] positions: cos and sin, each [T, 1, head_dim], the first half of sin negated.

        The rotation is then ``x * cos + swap_halves(x) * sin``.
        """
        angles = positions.to(torch.float32).unsqueeze(1) * self._inverse
        cos = (angles.cos() * self._attention_factor).to(self._dtype)
        sin = (angles.sin() * self._attention_factor).to(self._dtype)
        return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)
