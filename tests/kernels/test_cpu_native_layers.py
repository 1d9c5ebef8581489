"""Whole native layers: norms, linears with LoRA, rotation, attention, activation, residuals; against float64."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.paged_steps import Heads, Rows, Step, random_tensor, steps
from torch import Tensor

from loraplex_kernels.activation import reference as activation_reference
from loraplex_kernels.cpu_native.adapter_groups import AdapterGroups, LoraStep, SegmentRows, pack_group
from loraplex_kernels.cpu_native.decoder_layers import DecoderLayers, NativeLayer
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.linear import NativeLinear
from loraplex_kernels.lora import reference as lora_reference
from loraplex_kernels.lora.segments import AdapterPairs, LoraBatch
from loraplex_kernels.lora.site_group import Expand, SiteGroup
from loraplex_kernels.norm import reference as norm_reference
from loraplex_kernels.paged_attention import reference as attention_reference
from loraplex_kernels.rope_cache import reference as rope_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
LAYERS, HIDDEN, INNER, EPS = 2, 40, 52, 1e-5
WINDOWS = (None, 6)
RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
Groups = dict[str, SiteGroup | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer in float64; a linear is a list of sites."""

    linears: dict[str, list[Tensor]]
    biases: dict[str, Tensor | None]
    norms: dict[str, Tensor | None]


def make_layer(heads: Heads, seed: int, has_extras: bool) -> Layer:
    q, kv = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    shapes = {
        "qkv": ([q, kv, kv], HIDDEN),
        "o": ([HIDDEN], q),
        "gate_up": ([INNER, INNER], HIDDEN),
        "down": ([HIDDEN], INNER),
    }
    linears = {
        name: [random_tensor(size, inputs, seed=seed + size) / 2 ** round(math.log2(inputs) / 2) for size in sizes]
        for name, (sizes, inputs) in shapes.items()
    }
    biases = {name: random_tensor(sum(sizes), seed=seed) if has_extras else None for name, (sizes, _) in shapes.items()}
    sizes = {"input": HIDDEN, "post": HIDDEN, "q": heads.head_dim, "k": heads.head_dim}
    norms = {
        name: random_tensor(size, seed=seed + 1) if has_extras or size == HIDDEN else None
        for name, size in sizes.items()
    }
    return Layer(linears=linears, biases=biases, norms=norms)


def native(kernels: Library, layers: list[Layer], heads: Heads, dtype: torch.dtype) -> DecoderLayers:
    def linear(layer: Layer, name: str) -> NativeLinear:
        return NativeLinear(kernels, [weight.to(dtype) for weight in layer.linears[name]], layer.biases[name])

    def norm(layer: Layer, name: str) -> Tensor | None:
        weight = layer.norms[name]
        return None if weight is None else weight.float()

    made = []
    for layer, window in zip(layers, WINDOWS, strict=True):
        input_norm, post_norm = norm(layer, "input"), norm(layer, "post")
        assert input_norm is not None
        assert post_norm is not None
        made.append(
            NativeLayer(
                qkv=linear(layer, "qkv"),
                o=linear(layer, "o"),
                gate_up=linear(layer, "gate_up"),
                down=linear(layer, "down"),
                input_norm=input_norm,
                post_attention_norm=post_norm,
                q_norm=norm(layer, "q"),
                k_norm=norm(layer, "k"),
                window=window,
            )
        )
    return DecoderLayers(kernels, made, num_heads=heads.num_heads, num_kv_heads=heads.num_kv_heads, norm_eps=EPS)


def make_adapter(layers: list[Layer], seed: int) -> list[Groups]:
    """By layer and linear; every third linear is left out, and every other site of those with several."""
    adapter: list[Groups] = []
    for index, layer in enumerate(layers):
        groups: Groups = {}
        for number, (name, sites) in enumerate(layer.linears.items()):
            left_out = (seed + index + number) % 3 == 0
            groups[name] = None if left_out else _group(sites, rank=1 + 5 * seed, seed=seed + number)
        adapter.append(groups)
    return adapter


def _group(sites: list[Tensor], rank: int, seed: int) -> SiteGroup:
    expands, out_start, rank_start = [], 0, 0
    for number, weight in enumerate(sites):
        if number % 2 == 0:
            rank_stop, out_stop = rank_start + rank, out_start + weight.shape[0]
            b = random_tensor(weight.shape[0], rank, seed=seed + number) / 16
            site = Expand(
                rank_start=rank_start, rank_stop=rank_stop, out_start=out_start, out_stop=out_stop, b=b, scale=0.5
            )
            expands.append(site)
            rank_start += rank
        out_start += weight.shape[0]
    return SiteGroup(a=random_tensor(rank_start, sites[0].shape[1], seed=seed) / 8, expands=tuple(expands))


def packed(kernels: Library, layers: list[Layer], adapter: list[Groups], dtype: torch.dtype) -> AdapterGroups:
    groups, starts = [], []
    for layer, named in zip(layers, adapter, strict=True):
        for name, sites in layer.linears.items():
            groups.append(None if named[name] is None else pack_group(kernels, _cast(named[name], dtype)))
            starts.append([sum(site.shape[0] for site in sites[:number]) for number in range(len(sites))])
    return AdapterGroups(groups, starts)


def _cast(group: SiteGroup | None, dtype: torch.dtype) -> SiteGroup:
    assert group is not None
    expands = tuple(dataclasses.replace(site, b=site.b.to(dtype)) for site in group.expands)
    return SiteGroup(a=group.a.to(dtype), expands=expands)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A step through a small decoder with adapters."""

    step: Step
    layers: list[Layer]
    adapters: list[list[Groups]]
    pairs: list[AdapterPairs]
    """By span."""

    @property
    def hidden(self) -> Tensor:
        return random_tensor(self.step.num_rows, HIDDEN, seed=4)

    def wanted(self, storage: Tensor) -> Tensor:
        """Changes ``storage`` as the step should."""
        hidden = self.hidden
        for index, layer in enumerate(self.layers):
            hidden = hidden + self._attend(index, layer, self._norm(layer, "input", hidden), storage)
            gate_up = self._linear(index, "gate_up", self._norm(layer, "post", hidden))
            hidden = hidden + self._linear(index, "down", activation_reference.silu_and_multiply(gate_up))
        return hidden

    def _norm(self, layer: Layer, name: str, x: Tensor) -> Tensor:
        weight = layer.norms[name]
        assert weight is not None
        return norm_reference.rms_norm(x, weight, EPS)

    def _linear(self, index: int, name: str, x: Tensor) -> Tensor:
        layer = self.layers[index]
        base, bias = x @ torch.cat(layer.linears[name]).T, layer.biases[name]
        rows = [pairs for span, pairs in zip(self.step.spans, self.pairs, strict=True) for _ in range(span.num_rows)]
        groups = [adapter[index][name] for adapter in self.adapters]
        return lora_reference.lora_rows(x, base if bias is None else base + bias, rows, groups)

    def _attend(self, index: int, layer: Layer, x: Tensor, storage: Tensor) -> Tensor:
        step, heads = self.step, self.step.heads
        qkv = self._linear(index, "qkv", x).view(step.num_rows, heads.all, heads.head_dim)
        q_norm, k_norm = layer.norms["q"], layer.norms["k"]
        if q_norm is not None and k_norm is not None:
            rotated = heads.num_heads + heads.num_kv_heads
            normed = norm_reference.norm_heads(qkv[:, :rotated], q_norm, k_norm, heads.num_heads, EPS)
            qkv = torch.cat((normed, qkv[:, rotated:]), 1)
        keys, values = storage[:, index, 0], storage[:, index, 1]
        cos, sin = step.angles()
        rows = torch.arange(step.num_rows)
        query = rope_reference.rope_and_cache(qkv, rows, step.slots(), cos, sin, keys, values, heads.num_heads)
        lengths = ([span.num_rows for span in step.spans], [span.context_len for span in step.spans])
        window = WINDOWS[index]
        mixed = attention_reference.attend(query, keys, values, step.page_table(), *lengths, window=window)
        return self._linear(index, "o", mixed.reshape(step.num_rows, -1))


class Native:
    """The same world, packed."""

    def __init__(self, kernels: Library, world: World) -> None:
        self._world, dtype = world, world.step.dtype
        self._layers = native(kernels, world.layers, world.step.heads, dtype)
        self._adapters = [packed(kernels, world.layers, adapter, dtype) for adapter in world.adapters]

    def run(self, step: Step, pairs: list[AdapterPairs], hidden: Tensor, storage: Tensor, num_threads: int) -> Tensor:
        batch = LoraBatch.from_runs([(span.num_rows, one) for span, one in zip(step.spans, pairs, strict=True)])
        cos, sin = step.angles()
        result = hidden.float()
        self._layers.run(
            result,
            cos=cos.float(),
            sin=sin.float(),
            slots=step.slots(),
            spans=step.spans,
            storage=storage,
            lora=LoraStep(SegmentRows(batch), self._adapters),
            num_threads=num_threads,
        )
        return result


@st.composite
def worlds(draw: st.DrawFn) -> World:
    step = draw(steps(max_rows=9, head_dims=(8, 20)))
    layers = [make_layer(step.heads, 10 * index, draw(st.booleans())) for index in range(LAYERS)]
    pairs = st.sampled_from([(), ((0, 1.0),), ((1, 0.5),), ((2, -1.0),), ((0, 0.5), (2, 2.0))])
    chosen = [draw(pairs) for _ in step.spans]
    return World(step=step, layers=layers, adapters=[make_adapter(layers, seed) for seed in range(3)], pairs=chosen)


def relative_error(got: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(got.double() - truth) / torch.linalg.norm(truth))


@given(world=worlds(), num_threads=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_layers_equal_float64_for_ragged_steps_with_and_without_adapters(
    kernels: Library, world: World, num_threads: int
) -> None:
    truth = world.step.storage(LAYERS)
    storage = truth.to(world.step.dtype)
    got = Native(kernels, world).run(world.step, world.pairs, world.hidden, storage, num_threads)
    assert relative_error(got, world.wanted(truth)) <= RELATIVE_ERROR[world.step.dtype]
    assert relative_error(storage.nan_to_num(), truth.nan_to_num()) <= RELATIVE_ERROR[world.step.dtype]
    assert torch.equal(storage.isnan(), truth.isnan())


@given(world=worlds())
@settings(max_examples=5, deadline=None)
def test_a_sequence_is_the_same_to_the_bit_in_any_batch(kernels: Library, world: World) -> None:
    step, native_layers = world.step, Native(kernels, world)
    storage = step.storage(LAYERS).to(step.dtype)
    together = native_layers.run(step, world.pairs, world.hidden, storage.clone(), 2)
    for span, pairs in zip(step.spans, world.pairs, strict=True):
        rows = slice(span.start_row, span.start_row + span.num_rows)
        lone = dataclasses.replace(step, spans=[dataclasses.replace(span, start_row=0)])
        got = native_layers.run(lone, [pairs], world.hidden[rows], storage, 1)
        assert torch.equal(got, together[rows])


def test_more_threads_than_cores_give_the_same_bits_every_time(kernels: Library) -> None:
    heads = Heads(num_kv_heads=2, group=3, head_dim=16)
    spans = [Rows(start_row=row, num_rows=1, context_len=20, page_ids=(2 * row, 2 * row + 1)) for row in range(12)]
    spans.append(Rows(start_row=12, num_rows=21, context_len=30, page_ids=(24, 25)))
    step = Step(spans=spans, page_size=16, num_pages=26, heads=heads, dtype=torch.bfloat16)
    layers = [make_layer(heads, seed, has_extras=True) for seed in range(LAYERS)]
    pairs: list[AdapterPairs] = [((number % 3, 1.0),) for number in range(len(spans))]
    world = World(step=step, layers=layers, adapters=[make_adapter(layers, seed) for seed in range(3)], pairs=pairs)
    native_layers, storage = Native(kernels, world), step.storage(LAYERS).to(torch.bfloat16)
    once = native_layers.run(step, pairs, world.hidden, storage.clone(), 1)
    for repetition in range(50):
        again = native_layers.run(step, pairs, world.hidden, storage.clone(), 2 + repetition % 5)
        assert torch.equal(again, once), repetition
