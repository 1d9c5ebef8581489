"""Adapters of different kinds over the real model, made and evaluated by PEFT: the oracle of the parity tests."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CONFIGS: dict[str, LoraConfig] = {
    "rank1-q": LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj"]),
    "rank64-all": LoraConfig(r=64, lora_alpha=64, target_modules=ALL_LINEAR),
    "rslora-qv": LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "patterns": LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "o_proj", "down_proj"],
        rank_pattern={"q_proj": 4, r"layers\.1\d\.self_attn\.o_proj": 24},
        alpha_pattern={"down_proj": 5, r"layers\.2\d\.self_attn\.q_proj": 9},
    ),
    "mlp-only": LoraConfig(r=5, lora_alpha=10, target_modules=["gate_proj", "up_proj", "down_proj"]),
    "upper-layers": LoraConfig(
        r=32, lora_alpha=32, target_modules=["k_proj", "o_proj"], layers_to_transform=list(range(20, 30))
    ),
    "embeddings": LoraConfig(r=8, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "regex-exclude": LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=r".*\.(q_proj|v_proj|up_proj)",
        exclude_modules=r".*layers\.(0|29)\..*",
    ),
    "bias": LoraConfig(r=4, lora_alpha=8, target_modules=ALL_LINEAR, lora_bias=True),
    "dora": LoraConfig(r=4, lora_alpha=8, target_modules=[*ALL_LINEAR, "embed_tokens", "lm_head"], use_dora=True),
}
STRENGTH = {
    "rank1-q": 0.5,
    "regex-exclude": 0.06,
    "rslora-qv": 0.05,
    "patterns": 0.15,
    "mlp-only": 0.08,
    "upper-layers": 0.1,
}
DEFAULT_STRENGTH = 0.02
"""Standard deviation of the random B matrices: enough to change most greedy tokens, not enough to destroy the text."""


_LAST = ("bias", "dora")
"""Filled after the others, so that their values stay what they were."""


def _owner(names: Sequence[str], key: str) -> str | None:
    """The adapter whose B, or bias of B, a parameter is."""
    return next((name for name in names if f"lora_B.{name}." in key or f"lora_embedding_B.{name}" in key), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of the mixed batch: which adapters at which weight, and the prompt."""

    adapters: tuple[tuple[str, float], ...]
    prompt_ids: tuple[int, ...]


class PeftOracle:
    """The base model with all adapters loaded side by side, in one dtype."""

    def __init__(self, model_folder: Path, dtype: torch.dtype) -> None:
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, attn_implementation="eager")
        names = list(CONFIGS)
        torch.manual_seed(7)
        self.model = get_peft_model(base.eval(), CONFIGS[names[0]], adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, CONFIGS[name])
        self.model.to(dtype).eval()
        self._fill(names)

    def _fill(self, names: Sequence[str]) -> None:
        """Random B, so that each adapter changes the answers; the same for every dtype."""
        generator = torch.Generator().manual_seed(11)
        owned = [(_owner(names, key), key, tensor) for key, tensor in self.model.named_parameters()]
        for name, key, tensor in sorted(owned, key=lambda item: (item[0] in _LAST, item[1])):
            if name is not None:
                values = torch.randn(tensor.shape, generator=generator) * STRENGTH.get(name, DEFAULT_STRENGTH)
                tensor.data.copy_(values.to(torch.bfloat16))
            elif "lora_magnitude_vector" in key:
                # A third of the columns another length than the base's, the others as they are.
                tensor.data[::3] *= 1.0625
            elif "lora_" in key:
                tensor.data.copy_(tensor.data.to(torch.bfloat16))

    def save(self, folder: Path) -> dict[str, Path]:
        """Each adapter as PEFT writes it; folder by name."""
        self.model.save_pretrained(folder, selected_adapters=list(CONFIGS))
        return {name: folder / name for name in CONFIGS}

    @contextlib.contextmanager
    def active(self, adapters: tuple[tuple[str, float], ...]) -> Iterator[None]:
        """The model with these adapters at these weights, or the bare base model."""
        if not adapters:
            with self.model.disable_adapter():
                yield
            return
        self.model.base_model.set_adapter([name for name, _ in adapters])
        for name, weight in adapters:
            self._set_scale(name, weight)
        try:
            yield
        finally:
            for name, _ in adapters:
                self._set_scale(name, 1.0)

    def _set_scale(self, name: str, weight: float) -> None:
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(name, weight)

    def logits(self, adapters: tuple[tuple[str, float], ...], sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """[len, vocab] float32 for each sequence, in one right-padded batch: padding cannot reach back."""
        longest = max(len(sequence) for sequence in sequences)
        ids = torch.tensor([[*sequence, *([0] * (longest - len(sequence)))] for sequence in sequences])
        with torch.no_grad(), self.active(adapters):
            out = self.model(input_ids=ids).logits.float()
        return [out[row, : len(sequence)] for row, sequence in enumerate(sequences)]
