"""The digest names what an adapter computes: nothing more, nothing less."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.adapters.adapter_folder import BASE, Q_A, Q_B, config, lora_tensors, write_folder

from loraplex_adapters.digest import adapter_digest, payload_digest
from loraplex_adapters.ingest import ingest
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import LAYER_MODULES, Module
from loraplex_adapters.spec import LoraSite
from loraplex_adapters.store import AdapterStore
from loraplex_adapters.tensor import TensorBytes


def _digest(folder: Path, **content: object) -> str:
    write_folder(folder, **content)  # type: ignore[arg-type]
    store = AdapterStore(folder / "store")
    return ingest(folder, base=BASE, store=store, limits=Limits(), validate_only=True).spec.digest


@pytest.fixture
def digest(tmp_path) -> str:
    return _digest(tmp_path / "reference")


def test_file_order_does_not_count(tmp_path, digest):
    assert _digest(tmp_path, tensors=dict(reversed(lora_tensors(Module.Q_PROJ).items()))) == digest


def test_json_order_and_harmless_fields_do_not_count(tmp_path, digest):
    document = {"peft_version": "9", "lora_dropout": 0.5, **dict(reversed(config().items())), "inference_mode": True}
    assert _digest(tmp_path, document=document) == digest


def test_the_base_model_name_does_not_count(tmp_path, digest):
    assert _digest(tmp_path, document=config(base_model_name_or_path="somebody/else")) == digest


def test_the_spelling_of_a_scale_does_not_count(tmp_path, digest):
    assert _digest(tmp_path, document=config(lora_alpha=8.0, rank_pattern={"q_proj": 4}, r=64)) == digest
    assert _digest(tmp_path, document=config(lora_alpha=4, use_rslora=True)) == digest


def test_the_spelling_of_the_targets_does_not_count(tmp_path, digest):
    assert _digest(tmp_path, document=config(target_modules=r".*self_attn\.q_proj")) == digest


def test_another_scale_counts(tmp_path, digest):
    assert _digest(tmp_path, document=config(lora_alpha=9)) != digest
    assert _digest(tmp_path, document=config(use_rslora=True)) != digest


def test_swapped_layers_count(tmp_path, digest):
    tensors = lora_tensors(Module.Q_PROJ)
    swapped = {name: tensors[name.translate(str.maketrans("01", "10"))] for name in tensors}
    assert _digest(tmp_path, tensors=swapped) != digest


def test_another_module_of_the_same_shape_counts(tmp_path, digest):
    tensors = {name.replace("q_proj", "o_proj"): tensor for name, tensor in lora_tensors(Module.Q_PROJ).items()}
    assert _digest(tmp_path, tensors=tensors, document=config(target_modules=["o_proj"])) != digest


def test_another_dtype_with_the_same_bits_counts(tmp_path):
    zeros = {
        name: TensorBytes("F16", t.shape, t.data[: len(t.data) // 2]) for name, t in lora_tensors(Module.Q_PROJ).items()
    }
    twins = {name: TensorBytes("BF16", tensor.shape, tensor.data) for name, tensor in zeros.items()}
    assert payload_digest(zeros) != payload_digest(twins)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([Q_A, Q_B]), bit=st.integers(0, 64 * 32 - 1))
def test_any_flipped_bit_counts(name, bit):
    tensors = lora_tensors(Module.Q_PROJ)
    data = bytearray(tensors[name].data)
    data[bit // 8] ^= 1 << (bit % 8)
    assert payload_digest({**tensors, name: tensors[name]._replace(data=bytes(data))}) != payload_digest(tensors)


_SITES = st.builds(
    LoraSite,
    layer=st.integers(0, 3),
    module=st.sampled_from(LAYER_MODULES),
    rank=st.integers(1, 64),
    scale=st.floats(allow_nan=False, allow_infinity=False),
)
_SPECS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["lora", "lor", ""]),
        "dtype": st.sampled_from(["F16", "BF16", "F32", "a"]),
        "num_bytes": st.integers(0, 4),
        "sites": st.lists(_SITES, max_size=3, unique_by=lambda site: (site.layer, site.module)),
        "payload": st.binary(max_size=3),
    }
)


def _canonical(spec) -> str:
    sites = sorted((s.layer, s.module.value, s.rank, s.scale.hex()) for s in spec["sites"])
    return json.dumps([spec["kind"], spec["dtype"], spec["num_bytes"], sites, spec["payload"].hex()])


@settings(max_examples=200, deadline=None)
@given(left=_SPECS, right=_SPECS)
def test_specs_share_a_digest_exactly_when_they_are_equal(left, right):
    assert (adapter_digest(**left) == adapter_digest(**right)) == (_canonical(left) == _canonical(right))


_TENSORS = st.dictionaries(
    st.text("ab", max_size=3),
    st.builds(
        TensorBytes,
        st.sampled_from(["F32", "F16"]),
        st.lists(st.integers(0, 3), max_size=2).map(tuple),
        st.binary(max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(left=_TENSORS, right=_TENSORS)
def test_the_framing_of_tensors_is_injective(left, right):
    assert (payload_digest(left) == payload_digest(right)) == (left == right)


@given(st.data())
def test_any_one_changed_part_of_a_site_counts(data):
    site = data.draw(_SITES)
    other = dataclasses.replace(
        site, **data.draw(st.sampled_from([{"rank": site.rank + 1}, {"layer": (site.layer or 0) + 1}]))
    )
    digests = {
        adapter_digest(kind="lora", dtype="F32", num_bytes=1, payload=b"", sites=[item]) for item in (site, other)
    }
    assert len(digests) == 2
