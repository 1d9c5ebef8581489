"""The base model's weights, read tensor by tensor from a Hugging Face folder into the layout that the decoder uses."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from loraplex_contract.errors import FailedPrecondition
from loraplex_worker.model.checkpoint import Checkpoint
from loraplex_worker.model.model_config import ModelConfig

_ROTARY_BUFFER = "rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer. Linear weights are [out_features, in_features]; biases [out_features] or None."""

    input_norm: Tensor
    """[hidden]."""
    qkv: Tensor
    """[q_size + 2 * kv_size, hidden]: q, k, v, one below the other."""
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    """[head_dim]."""
    k_norm: Tensor | None
    """[head_dim]."""
    o: Tensor
    """[hidden, q_size]."""
    o_bias: Tensor | None
    post_attention_norm: Tensor
    """[hidden]."""
    gate_up: Tensor
    """[2 * intermediate, hidden]: gate above up."""
    gate_up_bias: Tensor | None
    down: Tensor
    """[hidden, intermediate]."""
    down_bias: Tensor | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """The whole model, all tensors of one dtype."""

    embed_tokens: Tensor
    """[vocab, hidden]."""
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    """[hidden]."""
    lm_head: Tensor
    """[vocab, hidden]; the same tensor as ``embed_tokens`` where the model ties them."""

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.dtype


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> ModelWeights:
    """Read ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names, as ``dtype``.

    Raises:
        FailedPrecondition: a tensor is missing, left over, or of another shape than ``config`` says; names it.
        DataLoss: a file is cut off or not safetensors.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise FailedPrecondition(f"compute dtype {dtype} is not known; use float32 or bfloat16")
    with Checkpoint.open(folder, dtype) as checkpoint:
        loader = _Loader(checkpoint, config)
        weights = loader.model()
        _refuse_left_over(checkpoint.unread(), config)
    return weights


def _refuse_left_over(names: set[str], config: ModelConfig) -> None:
    left_over = {name for name in names if not name.endswith(_ROTARY_BUFFER)}
    if config.tie_word_embeddings:
        left_over.discard("lm_head.weight")
    if left_over:
        shown = sorted(left_over)[:8]
        raise FailedPrecondition(
            f"the checkpoint has {len(left_over)} tensors that {config.architecture} does not use, e.g. {shown}",
            reason="BASE_MODEL_UNSUPPORTED",
        )


class _Loader:
    """Puts tensors of a checkpoint where they belong; each is read once and freed once copied."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config

    def model(self) -> ModelWeights:
        config = self._config
        table = (config.vocab_size, config.hidden_size)
        embed = self._checkpoint.read("model.embed_tokens.weight", table)
        head = embed if config.tie_word_embeddings else self._checkpoint.read("lm_head.weight", table)
        return ModelWeights(
            embed_tokens=embed,
            layers=tuple(self._layer(f"model.layers.{index}.") for index in range(config.num_layers)),
            norm=self._checkpoint.read("model.norm.weight", (config.hidden_size,)),
            lm_head=head,
        )

    def _layer(self, prefix: str) -> LayerWeights:
        config = self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = [(attention + "q_proj", config.q_size), (attention + "k_proj", config.kv_size)]
        qkv.append((attention + "v_proj", config.kv_size))
        gate_up = [(mlp + "gate_proj", inner), (mlp + "up_proj", inner)]
        down, o = [(mlp + "down_proj", hidden)], [(attention + "o_proj", hidden)]
        return LayerWeights(
            input_norm=self._checkpoint.read(prefix + "input_layernorm.weight", (hidden,)),
            qkv=self._stacked(qkv, hidden),
            qkv_bias=self._stacked_bias(qkv, config.qkv_bias),
            q_norm=self._head_norm(attention + "q_norm.weight"),
            k_norm=self._head_norm(attention + "k_norm.weight"),
            o=self._stacked(o, config.q_size),
            o_bias=self._stacked_bias(o, config.o_bias),
            post_attention_norm=self._checkpoint.read(prefix + "post_attention_layernorm.weight", (hidden,)),
            gate_up=self._stacked(gate_up, hidden),
            gate_up_bias=self._stacked_bias(gate_up, config.mlp_bias),
            down=self._stacked(down, inner),
            down_bias=self._stacked_bias(down, config.mlp_bias),
        )

    def _stacked(self, parts: list[tuple[str, int]], in_features: int) -> Tensor:
        fused = torch.empty(sum(size for _, size in parts), in_features, dtype=self._checkpoint.dtype)
        row = 0
        for name, size in parts:
            fused[row : row + size] = self._checkpoint.read(name + ".weight", (size, in_features))
            row += size
        return fused

    def _stacked_bias(self, parts: list[tuple[str, int]], present: bool) -> Tensor | None:
        if not present:
            return None
        return torch.cat([self._checkpoint.read(name + ".bias", (size,)) for name, size in parts])

    def _head_norm(self, name: str) -> Tensor | None:
        return self._checkpoint.read(name, (self._config.head_dim,)) if self._config.qk_norm else None
