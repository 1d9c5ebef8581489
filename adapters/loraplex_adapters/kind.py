"""What an adapter computes at its sites, beside A and B."""

import enum


class AdapterKind(enum.StrEnum):
    """PEFT's flags are of the whole adapter, and exclude each other."""

    LORA = "lora"
    """``y + scale * B A x``; rsLoRA differs in the scale alone."""
    LORA_BIAS = "lora_bias"
    """``y + scale * (B A x + bias)``."""
    DORA = "dora"
    """``magnitude / ||W + scale * B A|| * (W x + scale * B A x)`` and the base's bias, the norm by output."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What the tensors of one site are called, behind the site's key."""
        return _PARTS[self]


_PARTS = {
    AdapterKind.LORA: ("A", "B"),
    AdapterKind.LORA_BIAS: ("A", "B", "bias"),
    AdapterKind.DORA: ("A", "B", "magnitude"),
}
