"""All layers of a decoder in one call."""

import ctypes
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.cpu_native import structures
from loraplex_kernels.cpu_native.adapter_groups import LoraStep
from loraplex_kernels.cpu_native.attention import Rows, SpanTable, cache_of, check_step
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.linear import NativeLinear
from loraplex_kernels.cpu_native.packed import DTYPES, check, check_host


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NativeLayer:
    """One layer. Norm weights are float32."""

    qkv: NativeLinear
    o: NativeLinear
    gate_up: NativeLinear
    down: NativeLinear
    input_norm: Tensor
    post_attention_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int | None


class DecoderLayers:
    """The layers of a model, and the scratch memory of their steps. Used by one thread at a time."""

    def __init__(
        self, library: Library, layers: Sequence[NativeLayer], *, num_heads: int, num_kv_heads: int, norm_eps: float
    ) -> None:
        first = layers[0]
        self._library = library
        self._layers = tuple(layers)
        self._structs = (structures.Layer * len(layers))()
        for struct, layer in zip(self._structs, layers, strict=True):
            _fill(struct, layer)
        self._hidden_size = first.qkv.in_features
        self._num_kv_heads = num_kv_heads
        self._head_dim = first.o.in_features // num_heads
        self._dtype = first.qkv.dtype
        self._model = structures.Model(
            layers=self._structs,
            num_layers=len(layers),
            hidden_size=self._hidden_size,
            intermediate_size=first.down.in_features,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self._head_dim,
            norm_eps=norm_eps,
            dtype=DTYPES[self._dtype],
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def run(
        self,
        hidden: Tensor,
        *,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        spans: Sequence[Rows],
        storage: Tensor,
        lora: LoraStep,
        num_threads: int | None = None,
    ) -> None:
        """Change ``hidden`` [T, hidden_size] float32 from embeddings to what the head's norm reads; fill the cache.

        See ``attend`` for the other arguments; ``lora`` has four groups a layer: qkv, o, gate and up, down.

        Raises:
            ValueError: dtypes, shapes or strides that do not fit.
        """
        check_host(hidden=hidden, cos=cos, sin=sin, slots=slots, storage=storage)
        fits = hidden.dtype == torch.float32 and hidden.shape == (slots.shape[0], self._hidden_size)
        check(fits, "hidden must be float32 [T, hidden_size]", hidden=hidden, slots=slots)
        expected = (len(self._layers), 2, self._num_kv_heads, storage.shape[4], self._head_dim)
        check(storage.shape[1:] == expected and storage.dtype == self._dtype, f"cache of {expected}", storage=storage)
        angles = cos.shape == sin.shape == (hidden.shape[0], self._head_dim // 2) and slots.dtype == torch.int64
        check(angles and cos.dtype == sin.dtype == torch.float32, "cos, sin are of each row", cos=cos, sin=sin)
        table, cache = SpanTable(spans), cache_of(storage)
        batch = table.batch(slots, cos, sin)
        batch.hidden, batch.lora = hidden.data_ptr(), lora.struct
        check_step(self._library, cache, batch)
        threads = num_threads or torch.get_num_threads()
        scratch = self._take(self._library.layers_scratch(ctypes.byref(self._model), ctypes.byref(batch), threads))
        self._library.layers(threads, ctypes.byref(self._model), ctypes.byref(cache), ctypes.byref(batch), scratch)

    def _take(self, num_bytes: int) -> int:
        """The address of scratch memory, grown on need and kept."""
        if self._scratch.numel() < num_bytes + 64:
            self._scratch = torch.empty(num_bytes + 64, dtype=torch.uint8)
        return -(-self._scratch.data_ptr() // 64) * 64


def _fill(struct: structures.Layer, layer: NativeLayer) -> None:
    struct.qkv, struct.o = layer.qkv.struct, layer.o.struct
    struct.gate_up, struct.down = layer.gate_up.struct, layer.down.struct
    norms = (layer.input_norm, layer.post_attention_norm, layer.q_norm, layer.k_norm)
    for name, norm in zip(("input_norm", "post_attention_norm", "q_norm", "k_norm"), norms, strict=True):
        if norm is not None:
            check_host(norm=norm)
            check(norm.dtype == torch.float32, "norm weights must be float32", norm=norm)
            setattr(struct, name, norm.data_ptr())
    struct.window = layer.window or 0
