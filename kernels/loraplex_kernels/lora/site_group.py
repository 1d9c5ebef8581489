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
    """[out_stop - out_start, rank_stop - rank_start], contiguous; the packed form of it in a packed group."""
    scale: float
    """PEFT's effective scaling: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    bias: Tensor | None = None
    """[out_stop - out_start], contiguous, dtype of A: added to ``B A x`` before the scaling. CPU paths only."""
    gain: Tensor | None = None
    """[out_stop - out_start], contiguous, dtype of A: of DoRA, whose change of a row is ``gain * W x + (1 + gain) *
    scale * B A x``. CPU paths only."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """Sites that share one input, so that one shrink serves them all.

    For ``embed_tokens`` the "input features" are the vocabulary: ``a`` is [R, vocab] and is read by column.
    """

    a: Tensor
    """[R, in_features]: the A matrices of the sites, one below the other; R is the sum of their ranks."""
    expands: tuple[Expand, ...]
    is_packed: bool = False
    """Whether each ``b`` is packed for the kernels of ``cpu_native``, which then alone can read it."""

    @property
    def is_dora(self) -> bool:
        """Whether the change depends on the base linear's output: of all sites of an adapter, or of none."""
        return self.expands[0].gain is not None

    @property
    def num_bytes(self) -> int:
        """Of all tensors, without the padding of packed ones (none where outputs come in 16s and ranks are even)."""
        num_b = sum((site.out_stop - site.out_start) * (site.rank_stop - site.rank_start) for site in self.expands)
        vectors = (vector for site in self.expands for vector in (site.bias, site.gain) if vector is not None)
        return (self.a.numel() + num_b + sum(vector.numel() for vector in vectors)) * self.a.element_size()
