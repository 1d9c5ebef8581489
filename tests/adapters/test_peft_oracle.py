"""What PEFT itself builds and saves is what we parse: same sites, ranks, scales and bytes."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.adapters.adapter_folder import write_folder
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.ingest import ingest
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import ParsedAdapter, parse_peft_folder
from loraplex_adapters.peft_targets import module_path
from loraplex_adapters.spec import saved_name, site_key
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import InvalidArgument, LoraplexError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:peft.*")  # patterns that match nothing; we note them
CONFIG = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


def _base_model(base_folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(base_folder)


def _peft_sites(model: Any) -> dict[str, tuple[int, float]]:
    """Full module name -> (rank, scaling) as PEFT's own layers hold them."""
    return {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _our_sites(parsed: ParsedAdapter) -> dict[str, tuple[int, float]]:
    return {module_path(site.layer, site.module): (site.rank, site.scale) for site in parsed.sites}


def _check_against_peft(base_folder: Path, config: LoraConfig) -> ParsedAdapter | None:
    """PEFT loading the folder is the truth: both refuse, or both agree on everything. Returns the parsed adapter."""
    base = BaseShape.from_folder(base_folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model = get_peft_model(_base_model(base_folder), config)
        except ValueError:
            config.save_pretrained(str(folder))
            write_folder(folder, document=_saved_document(folder), tensors={})
            with pytest.raises(LoraplexError):
                parse_peft_folder(folder, base, Limits())
            return None
        model.save_pretrained(str(folder))
        try:
            loaded = PeftModel.from_pretrained(_base_model(base_folder), folder)
        except RuntimeError:  # PEFT sorts patterns when it saves; overlapping rank patterns then no longer fit
            with pytest.raises(InvalidArgument, match="rank"):
                parse_peft_folder(folder, base, Limits())
            return None
        parsed = parse_peft_folder(folder, base, Limits())
        assert _our_sites(parsed) == _peft_sites(loaded)
        _check_bytes(loaded, parsed)
        return parsed


def _saved_document(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "adapter_config.json").read_text())
    assert isinstance(document, dict)
    return document


def _check_bytes(model: Any, parsed: ParsedAdapter) -> None:
    parameters = dict(model.named_parameters())
    for module in parsed.saved:
        saved = parameters[f"base_model.model.{module_path(None, module)}.modules_to_save.default.weight"]
        assert parsed.tensors[saved_name(module)] == ("F32", saved.shape, saved.detach().numpy().tobytes())
    for site in parsed.sites:
        path = "base_model.model." + module_path(site.layer, site.module)
        is_embedding = f"{path}.lora_embedding_A.default" in parameters
        for part in "AB":
            name = f"{path}.lora_embedding_{part}.default" if is_embedding else f"{path}.lora_{part}.default.weight"
            dtype, shape, data = parsed.tensors[f"{site_key(site)}.{part}"]
            expected = parameters[name].detach().numpy()
            assert (dtype, shape, data) == ("F32", expected.shape, expected.tobytes())
        if site.kind is AdapterKind.DORA:
            magnitude = parameters[f"{path}.lora_magnitude_vector.default.weight"].detach().numpy()
            assert parsed.tensors[f"{site_key(site)}.magnitude"] == ("F32", magnitude.shape, magnitude.tobytes())
        if site.kind is AdapterKind.LORA_BIAS:
            bias = parameters[f"{path}.lora_B.default.bias"].detach().numpy()
            assert parsed.tensors[f"{site_key(site)}.bias"] == ("F32", bias.shape, bias.tobytes())


HONOURED = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 6, "lora_alpha": 7, "use_rslora": True, "target_modules": ["o_proj"]},
    "all-linear": {"r": 3, "target_modules": "all-linear"},
    "all-linear in capitals": {"r": 3, "target_modules": "ALL-Linear", "exclude_modules": ["down_proj"]},
    "regex": {"r": 2, "target_modules": r".*\.[01]\.(self_attn|mlp)\.(q|up)_proj"},
    "full name": {"r": 2, "target_modules": ["model.layers.1.mlp.up_proj"]},
    "partial path": {"r": 2, "target_modules": ["self_attn.k_proj", "1.mlp.gate_proj"]},
    "exclude list": {"r": 2, "target_modules": ["q_proj", "k_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    "exclude regex": {"r": 2, "target_modules": ["q_proj"], "exclude_modules": r".*layers\.2.*"},
    "one layer": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": 1},
    "some layers": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "layers pattern list": {
        "r": 2,
        "target_modules": ["q_proj"],
        "layers_to_transform": [2],
        "layers_pattern": ["h", "layers"],
    },
    "layers leave out the head": {"r": 2, "target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]},
    "full name ignores layers": {
        "r": 2,
        "target_modules": ["model.layers.1.mlp.up_proj", "q_proj"],
        "layers_to_transform": [0],
    },
    "rank pattern": {
        "r": 2,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 5, "0.self_attn.q_proj": 3},
    },
    "rank pattern order": {"r": 2, "target_modules": ["q_proj"], "rank_pattern": {r".*0\..*q_proj": 3, "q_proj": 5}},
    "alpha pattern reordered": {
        "r": 2,
        "target_modules": ["q_proj"],
        "alpha_pattern": {"q_proj": 5, r".*0\..*q_proj": 3},
    },
    "anchored pattern": {
        "r": 2,
        "target_modules": ["q_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 7, r"2\.self_attn.*": 9},
    },
    "alpha pattern": {
        "r": 4,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {"v_proj": 11, r"[12]\.self_attn\.q_proj": 5},
        "rank_pattern": {"v_proj": 3},
    },
    "embeddings and head": {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "bias": {"r": 2, "target_modules": ["q_proj", "up_proj", "lm_head"], "lora_bias": True, "use_rslora": True},
    "dora": {"r": 2, "target_modules": ["k_proj", "down_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "saved modules": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "saved head": {"r": 2, "target_modules": ["k_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    "gaussian": {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "mica": {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "mica"},
    "dropout": {"r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
    "fractional alpha": {"r": 3, "lora_alpha": 0.1, "target_modules": ["q_proj"]},
    "names that match nothing": {"r": 2, "target_modules": ["q_proj", "c_attn"]},
}


@pytest.mark.parametrize("options", HONOURED.values(), ids=HONOURED.keys())
def test_an_honoured_feature_gives_the_sites_ranks_and_scales_of_peft(base_folder, options):
    assert _check_against_peft(base_folder, LoraConfig(**options)) is not None


def test_rank_patterns_that_peft_itself_cannot_load_again_are_refused(base_folder):
    config = LoraConfig(r=2, target_modules=["q_proj"], rank_pattern={"q_proj": 5, r".*0\..*q_proj": 3})
    assert _check_against_peft(base_folder, config) is None


def test_overlapping_alpha_patterns_are_noted(base_folder):
    config = LoraConfig(r=2, target_modules=["q_proj"], alpha_pattern={"q_proj": 5, r".*0\..*q_proj": 3})
    parsed = _check_against_peft(base_folder, config)
    assert parsed is not None
    assert any("both 3 and 5" in note for note in parsed.notes)


REFUSED_BY_BOTH = {
    "everything": {"target_modules": ".*"},
    "norms": {"target_modules": ["q_proj", "input_layernorm"]},
    "nothing": {"target_modules": ["c_attn"]},
    "all excluded": {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
    "bias of an embedding": {"target_modules": ["q_proj", "embed_tokens"], "lora_bias": True},
    "rank zero": {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}},
}


@pytest.mark.parametrize("options", REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH.keys())
def test_what_peft_cannot_build_is_refused(base_folder, options):
    assert _check_against_peft(base_folder, LoraConfig(**options)) is None


_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
_PATHS = [*_NAMES, "self_attn.q_proj", "0.mlp.up_proj", "model.layers.1.self_attn.v_proj", "layers.2.mlp.down_proj"]
_PATTERNS = [
    *_PATHS,
    r".*\.[02]\..*",
    r"(q|k)_proj",
    r"layers\.\d\.mlp\..*",
    "^model.layers.0.self_attn.q_proj",
    ".*_proj",
]


@st.composite
def _lora_options(draw: st.DrawFn) -> dict[str, Any]:
    as_list = draw(st.booleans())
    targets: Any = draw(st.lists(st.sampled_from(_PATHS), min_size=1, max_size=4, unique=True))
    if not as_list:
        targets = draw(st.sampled_from(["all-linear", r".*\.(q|v|up)_proj", r"model\.layers\.[01]\..*_proj"]))
    layers = draw(st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2, unique=True))
    patterns = st.sampled_from(_PATTERNS)
    return {
        "r": draw(st.integers(1, 8)),
        "lora_alpha": draw(st.integers(1, 64)),
        "use_rslora": draw(st.booleans()),
        "target_modules": targets,
        "exclude_modules": draw(st.none() | st.lists(st.sampled_from(_PATHS), max_size=2) | patterns),
        "layers_to_transform": layers if as_list else None,
        "rank_pattern": draw(st.dictionaries(patterns, st.integers(1, 8), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(patterns, st.integers(1, 64), max_size=3)),
        "init_lora_weights": False,
    }


@settings(max_examples=40, deadline=None)
@given(options=_lora_options())
def test_any_mix_of_honoured_features_agrees_with_peft(base_folder, options):
    _check_against_peft(base_folder, LoraConfig(**options))


def test_half_precision_adapters_keep_their_dtype_and_bytes(base_folder, tmp_path):
    model = get_peft_model(
        _base_model(base_folder).to(torch.bfloat16),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        autocast_adapter_dtype=False,
    )
    model.save_pretrained(tmp_path)
    parsed = parse_peft_folder(tmp_path, BaseShape.from_folder(base_folder), Limits())
    weight = dict(model.named_parameters())["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert parsed.dtype == "BF16"
    assert parsed.tensors["layers.0.q_proj.A"].data == weight.detach().view(torch.uint8).numpy().tobytes()


def test_an_adapter_that_peft_loads_again_is_the_same_adapter(base_folder, tmp_path):
    model = get_peft_model(
        _base_model(base_folder), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "first")
    PeftModel.from_pretrained(_base_model(base_folder), tmp_path / "first").save_pretrained(tmp_path / "second")
    base = BaseShape.from_folder(base_folder)
    first, second = (parse_peft_folder(tmp_path / name, base, Limits()) for name in ("first", "second"))
    assert (first.sites, first.tensors) == (second.sites, second.tensors)


def test_the_file_names_that_peft_uses_are_the_ones_we_read(base_folder, tmp_path):
    model = get_peft_model(_base_model(base_folder), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    parsed = parse_peft_folder(tmp_path, BaseShape.from_folder(base_folder), Limits())
    assert re.fullmatch("[0-9a-f]{64}", parsed.source_sha256)
    assert any("changes nothing yet" in note for note in parsed.notes)


@pytest.mark.parametrize(("field", "kind"), [("lora_bias", "lora_bias"), ("use_dora", "dora")])
def test_kind_and_size_of_a_stored_adapter_take_in_what_it_has_beside_a_and_b(base_folder, tmp_path, field, kind):
    model = get_peft_model(_base_model(base_folder), LoraConfig(r=2, target_modules=["q_proj"], **{field: True}))
    model.save_pretrained(tmp_path / "peft")
    store = AdapterStore(tmp_path / "store")
    report = ingest(tmp_path / "peft", base=BaseShape.from_folder(base_folder), store=store, limits=Limits())
    spec = store.read_spec(report.spec.digest)
    assert (spec, spec.kind) == (report.spec, kind)
    assert {site.kind for site in spec.sites} == {kind}
    assert [site.num_bytes for site in report.sites] == [4 * (2 * 16 + 16 * 2 + 16)] * 3
    assert spec.num_parameters == 3 * (2 * 16 + 16 * 2 + 16)
    stored = store.read_tensors(spec.digest)
    assert sum(len(tensor.data) for tensor in stored.values()) == spec.num_bytes == 4 * spec.num_parameters


def test_a_saved_module_of_a_bfloat16_base_beside_float32_lora_keeps_its_numbers(base_folder, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(_base_model(base_folder).to(torch.bfloat16), config)
    model.save_pretrained(tmp_path / "peft")
    store = AdapterStore(tmp_path / "store")
    report = ingest(tmp_path / "peft", base=BaseShape.from_folder(base_folder), store=store, limits=Limits())
    assert store.read_spec(report.spec.digest) == report.spec
    assert (report.spec.saved, report.spec.dtype) == ((Module.LM_HEAD,), "F32")
    assert [(site.key, site.rank, site.num_bytes) for site in report.sites][-1] == ("lm_head", 0, 4 * 32 * 16)
    assert report.spec.num_parameters == 3 * (2 * 16 + 16 * 2) + 32 * 16
    weight = dict(model.named_parameters())["base_model.model.lm_head.modules_to_save.default.weight"]
    stored = store.read_tensors(report.spec.digest)["lm_head.saved"]
    assert stored == ("F32", (32, 16), weight.detach().float().numpy().tobytes())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    ],
)
def test_other_saved_modules_and_saved_targets_are_refused_by_name(base_folder, tmp_path, options):
    write_folder(tmp_path, document={"peft_type": "LORA", **options}, tensors={})
    with pytest.raises(LoraplexError) as caught:
        parse_peft_folder(tmp_path, BaseShape.from_folder(base_folder), Limits())
    assert caught.value.metadata["field"] == "modules_to_save"
    assert caught.value.reason == "ADAPTER_FEATURE_UNSUPPORTED"
