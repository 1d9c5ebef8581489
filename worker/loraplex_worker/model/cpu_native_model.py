"""The whole forward pass on the native CPU kernels: one call for all layers, one for the head."""

import functools

import torch
from torch import Tensor

from loraplex_kernels.cpu_native.adapter_groups import LoraStep, SegmentRows
from loraplex_kernels.cpu_native.decoder_layers import DecoderLayers, NativeLayer
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.linear import NativeLinear
from loraplex_kernels.lora import grouped_cpu
from loraplex_kernels.lora.segments import LoraBatch
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.lora_weights import LoraWeights, NativeLora
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.rope import RotaryTable
from loraplex_worker.model.saved_modules import add_saved_embedding, add_saved_head
from loraplex_worker.model.step_batch import StepBatch
from loraplex_worker.model.weights import LayerWeights, ModelWeights


class CpuNativeModel:
    """Activations between the kernels are float32; inputs of the products are rounded to the model's dtype."""

    def __init__(self, kernels: Library, config: ModelConfig, weights: ModelWeights) -> None:
        """Pack the weights; they may be dropped afterwards, but for the embedding."""
        self._config = config
        self._kernels = kernels
        self._huge_storage = 0
        self.computes_with = f"native {kernels.level.name.lower()}"
        self._embed_tokens = weights.embed_tokens
        self._layers = DecoderLayers(
            kernels,
            [
                _layer(kernels, config, layer, window)
                for layer, window in zip(weights.layers, config.windows, strict=True)
            ],
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            norm_eps=config.rms_norm_eps,
        )
        self._norm = weights.norm.to(torch.float32).contiguous()
        self._head = NativeLinear(kernels, [weights.lm_head], None)
        self._rotary = RotaryTable(config.rope, config.head_dim, torch.float32)
        self._segments: tuple[LoraBatch | None, SegmentRows] = (None, SegmentRows(None))

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        """See ``Decoder.forward``."""
        hidden = self._embed(batch)
        half = self._config.head_dim // 2
        cos, sin = self._rotary.at(batch.positions)
        self._advise_huge(kv.storage)
        kv.open_pages(batch.slots)
        self._layers.run(
            hidden,
            cos=cos[:, 0, :half].contiguous(),
            sin=sin[:, 0, half:].contiguous(),
            slots=batch.slots,
            spans=batch.spans,
            storage=kv.storage,
            lora=self._lora_step(batch),
        )
        return self._logits(batch, hidden)

    def _advise_huge(self, storage: Tensor) -> None:
        """A step reads pages all over the cache; huge ones spare most of the look-ups of their addresses."""
        if storage.data_ptr() != self._huge_storage:
            self._huge_storage = storage.data_ptr()
            self._kernels.advise_huge(storage.data_ptr(), storage.nbytes)

    def _embed(self, batch: StepBatch) -> Tensor:
        embedded = self._embed_tokens.index_select(0, batch.token_ids)
        if batch.lora is not None:
            groups = [adapter.embed_tokens for adapter in batch.adapters]
            if any(groups):
                grouped_cpu.add_lora_embedding(batch.token_ids, embedded, batch.lora, groups)
            if any(adapter.saved_embed is not None for adapter in batch.adapters):
                saved = [adapter.saved_embed for adapter in batch.adapters]
                add_saved_embedding(batch.token_ids, embedded, batch.lora, saved, self._embed_tokens)
        return embedded.to(torch.float32)

    def _lora_step(self, batch: StepBatch) -> LoraStep:
        # A batch that only decodes comes with the descriptor of the step before.
        if batch.lora is not self._segments[0]:
            self._segments = (batch.lora, SegmentRows(batch.lora))
        return LoraStep(self._segments[1], [_native(adapter).layers for adapter in batch.adapters])

    def _logits(self, batch: StepBatch, hidden: Tensor) -> Tensor:
        rows = hidden.index_select(0, batch.logit_rows)
        lora, norm, eps = None, self._norm, self._config.rms_norm_eps
        has_saved = any(adapter.saved_head is not None for adapter in batch.adapters)
        if batch.lora is not None and (has_saved or any(adapter.lm_head for adapter in batch.adapters)):
            lora = batch.lora.select(batch.logit_rows.tolist())
        heads = [_native(adapter).head for adapter in batch.adapters] if lora is not None else ()
        logits = self._head(rows, norm=norm, norm_eps=eps, lora=lora, adapters=heads)
        if has_saved and lora is not None:
            saved = [adapter.saved_head for adapter in batch.adapters]
            normed = torch.rms_norm(rows, (rows.shape[-1],), norm, eps)
            base_of = functools.partial(self._base_logits, rows)
            add_saved_head(normed, logits, lora, saved, base_of)
        return logits

    def _base_logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return self._head(hidden.index_select(0, rows), norm=self._norm, norm_eps=self._config.rms_norm_eps)


def _native(adapter: LoraWeights) -> NativeLora:
    assert adapter.native is not None, "the adapter was made for the torch path"
    return adapter.native


def _layer(kernels: Library, config: ModelConfig, weights: LayerWeights, window: int | None) -> NativeLayer:
    qkv = torch.split(weights.qkv, [config.q_size, config.kv_size, config.kv_size])
    gate_up = torch.chunk(weights.gate_up, 2)
    return NativeLayer(
        qkv=NativeLinear(kernels, qkv, weights.qkv_bias),
        o=NativeLinear(kernels, [weights.o], weights.o_bias),
        gate_up=NativeLinear(kernels, gate_up, weights.gate_up_bias),
        down=NativeLinear(kernels, [weights.down], weights.down_bias),
        input_norm=_float(weights.input_norm),
        post_attention_norm=_float(weights.post_attention_norm),
        q_norm=None if weights.q_norm is None else _float(weights.q_norm),
        k_norm=None if weights.k_norm is None else _float(weights.k_norm),
        window=window,
    )


def _float(norm: Tensor) -> Tensor:
    return norm.to(torch.float32).contiguous()
