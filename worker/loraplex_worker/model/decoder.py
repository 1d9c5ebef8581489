"""The decoder: one definition for the Llama family, whatever the device."""

import dataclasses

import torch
from torch import Tensor

from loraplex_kernels.cpu_native.library import Mode
from loraplex_kernels.lora.segments import LoraBatch
from loraplex_kernels.lora.site_group import SiteGroup
from loraplex_worker.model.cpu_native_model import CpuNativeModel
from loraplex_worker.model.cpu_operators import CpuOperators
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.lora_weights import native_library
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.operators import Attention, Linear, Operators
from loraplex_worker.model.rope import RotaryTable
from loraplex_worker.model.saved_modules import add_saved_embedding, add_saved_head
from loraplex_worker.model.step_batch import Span, StepBatch
from loraplex_worker.model.weights import LayerWeights, ModelWeights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer, its linears in the device's own layout."""

    weights: LayerWeights
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _LayerGroups:
    """Of one layer: the groups of the batch's adapters, by adapter index. None: no adapter changes those sites."""

    qkv: list[SiteGroup | None]
    o: list[SiteGroup | None]
    gate_up: list[SiteGroup | None]
    down: list[SiteGroup | None]


class Decoder:
    """A Llama-family decoder over paged KV, with LoRA of many adapters in one batch."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        operators: Operators | None = None,
        *,
        cpu_kernels: Mode = "auto",
    ) -> None:
        """Prepare the weights for the device.

        Args:
            config: the model.
            weights: as ``load_weights`` gives them; the linears are copied, so drop them afterwards.
            operators: what the device offers; CPU if None.
            cpu_kernels: what computes where ``operators`` is None; adapters must be made with the same.

        Raises:
            NativeUnavailable: ``native`` kernels were asked for, and cannot be had.
        """
        self.config = config
        self.dtype = weights.dtype
        """Compute dtype of the base model, and dtype of the KV cache."""
        device = weights.embed_tokens.device
        kernels = native_library(cpu_kernels, weights.dtype, device) if operators is None else None
        self._native = CpuNativeModel(kernels, config, weights) if kernels is not None else None
        if self._native is not None:
            return
        self._operators: Operators = operators or CpuOperators(weights.dtype)
        self._embed_tokens = weights.embed_tokens
        self._layers = [self._prepare(layer) for layer in weights.layers]
        self._norm = weights.norm
        self._head = self._operators.linear(weights.lm_head, None)
        self._rotary = RotaryTable(config.rope, config.head_dim, weights.dtype, weights.embed_tokens.device)

    @property
    def computes_with(self) -> str:
        """For logs: which kernels."""
        return "torch" if self._native is None else self._native.computes_with

    @property
    def lora_dtype(self) -> torch.dtype:
        """The dtype that ``LoraWeights.from_tensors`` should cast to: the fastest, and PEFT's own, on this device."""
        return self.dtype if self._native is not None else self._operators.lora_dtype

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        """Run one step: writes K and V of every row into ``kv``, then attends over each sequence's pages.

        Returns:
            [N, vocab_size] float32 logits of ``batch.logit_rows``, a tensor of its own (the caller may change it).
        """
        if self._native is not None:
            return self._native.forward(batch, kv)
        with torch.inference_mode():
            logits = self._forward(batch, kv)
        # Copied outside: a tensor made in inference mode could not be changed in place by the caller.
        return logits.to(torch.float32, copy=True)

    def _forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        hidden = self._embed(batch)
        cos, sin = self._rotary.at(batch.positions)
        attention = self._operators.attention(batch, kv, self.config.windows, self.config.num_heads)
        for index, layer in enumerate(self._layers):
            groups = _layer_groups(batch, index)
            hidden += self._attend(index, layer, hidden, (cos, sin), attention, batch.lora, groups)
            hidden += self._mlp(layer, hidden, batch.lora, groups)
        return self._logits(batch, hidden)

    def warm_up(self) -> None:
        """Run once on a throw-away cache, so that the first request does not pay for lazy set-up."""
        config = self.config
        kv = KvCache(
            num_layers=config.num_layers,
            num_pages=1,
            page_size=16,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=self.dtype,
        )
        for start, count in ((0, 8), (8, 1)):
            positions = torch.arange(start, start + count)
            span = Span(start_row=0, num_rows=count, context_len=start + count, page_ids=(0,))
            batch = StepBatch(
                token_ids=torch.zeros(count, dtype=torch.int64),
                positions=positions,
                slots=positions,
                spans=(span,),
                logit_rows=torch.tensor([count - 1]),
                lora=None,
            )
            self.forward(batch, kv)

    def _prepare(self, weights: LayerWeights) -> _Layer:
        linear = self._operators.linear
        return _Layer(
            weights=weights,
            qkv=linear(weights.qkv, weights.qkv_bias),
            o=linear(weights.o, weights.o_bias),
            gate_up=linear(weights.gate_up, weights.gate_up_bias),
            down=linear(weights.down, weights.down_bias),
        )

    def _embed(self, batch: StepBatch) -> Tensor:
        hidden = self._embed_tokens.index_select(0, batch.token_ids)
        if batch.lora is not None:
            groups = [adapter.embed_tokens for adapter in batch.adapters]
            if any(groups):
                self._operators.add_lora_embedding(batch.token_ids, hidden, batch.lora, groups)
            if any(adapter.saved_embed is not None for adapter in batch.adapters):
                saved = [adapter.saved_embed for adapter in batch.adapters]
                add_saved_embedding(batch.token_ids, hidden, batch.lora, saved, self._embed_tokens)
        return hidden

    def _linear(
        self, linear: Linear, x: Tensor, lora: LoraBatch | None, groups: list[SiteGroup | None], bias: Tensor | None
    ) -> Tensor:
        out = linear(x)
        if lora is not None and any(groups):
            self._operators.add_lora(x, out, lora, groups, bias)
        return out

    def _attend(
        self,
        index: int,
        layer: _Layer,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: Attention,
        lora: LoraBatch | None,
        groups: _LayerGroups,
    ) -> Tensor:
        config, weights = self.config, layer.weights
        normed = self._operators.rms_norm(hidden, weights.input_norm, config.rms_norm_eps)
        fused = self._linear(layer.qkv, normed, lora, groups.qkv, weights.qkv_bias)
        heads = fused.view(fused.shape[0], -1, config.head_dim)
        query_key = heads[:, : config.num_heads + config.num_kv_heads]
        if weights.q_norm is not None and weights.k_norm is not None:
            query_key = self._norm_heads(query_key, weights.q_norm, weights.k_norm)
        rotated = self._operators.rotate(query_key, *rotation)
        query, key = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
        mixed = attention(index, query, key, heads[:, config.num_heads + config.num_kv_heads :])
        return self._linear(layer.o, mixed, lora, groups.o, weights.o_bias)

    def _norm_heads(self, query_key: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        query, key = query_key[:, : self.config.num_heads], query_key[:, self.config.num_heads :]
        eps = self.config.rms_norm_eps
        normed = (self._operators.rms_norm(query, q_norm, eps), self._operators.rms_norm(key, k_norm, eps))
        return torch.cat(normed, 1)

    def _mlp(self, layer: _Layer, hidden: Tensor, lora: LoraBatch | None, groups: _LayerGroups) -> Tensor:
        normed = self._operators.rms_norm(hidden, layer.weights.post_attention_norm, self.config.rms_norm_eps)
        gate_up = self._linear(layer.gate_up, normed, lora, groups.gate_up, layer.weights.gate_up_bias)
        inner = self._operators.silu_and_multiply(gate_up)
        return self._linear(layer.down, inner, lora, groups.down, layer.weights.down_bias)

    def _logits(self, batch: StepBatch, hidden: Tensor) -> Tensor:
        """The head runs on the wanted rows only, with a descriptor of just those rows."""
        if batch.logit_rows.numel() == 0:
            return hidden.new_empty(0, self.config.vocab_size)
        rows = hidden.index_select(0, batch.logit_rows)
        normed = self._operators.rms_norm(rows, self._norm, self.config.rms_norm_eps)
        groups = [adapter.lm_head for adapter in batch.adapters] if batch.lora is not None else []
        saved = [adapter.saved_head for adapter in batch.adapters] if batch.lora is not None else []
        has_saved = any(weight is not None for weight in saved)
        lora = None
        if batch.lora is not None and (has_saved or any(groups)):
            lora = batch.lora.select(batch.logit_rows.tolist())
        logits = self._linear(self._head, normed, lora, groups, None)
        if has_saved and lora is not None:
            add_saved_head(normed, logits, lora, saved, lambda rows: self._head(normed.index_select(0, rows)))
        return logits


_NO_GROUPS = _LayerGroups(qkv=[], o=[], gate_up=[], down=[])


def _layer_groups(batch: StepBatch, index: int) -> _LayerGroups:
    if batch.lora is None:
        return _NO_GROUPS
    layers = [adapter.layers[index] for adapter in batch.adapters]
    return _LayerGroups(
        qkv=[layer.qkv for layer in layers],
        o=[layer.o for layer in layers],
        gate_up=[layer.gate_up for layer in layers],
        down=[layer.down for layer in layers],
    )
