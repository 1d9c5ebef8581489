"""The weights of one adapter at base linears that read the same input (q, k, v; gate, up; or one alone)."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expand:
    """One site's up-projection: columns ``rank_start:rank_stop`` of the shrink go to ``out_start:out_stop``."""

    rank_start: int
    rank_stop: int
    out_start: int
    out_stop: int
    b: Tensor
    """[out_stop - out_start, rank_stop - rank_start], contiguous."""
    scale: float
    """PEFT's effective scaling: alpha / r, or alpha / sqrt(r) for rsLoRA."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """Sites that share one input, so that one shrink serves them all.

    For ``embed_tokens`` the "input features" are the vocabulary: ``a`` is [R, vocab] and is read by column.
    """

    a: Tensor
    """[R, in_features]: the A matrices of the sites, one below the other; R is the sum of their ranks."""
    expands: tuple[Expand, ...]

    @property
    def num_bytes(self) -> int:
        tensors = [self.a, *(expand.b for expand in self.expands)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
