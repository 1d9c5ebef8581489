"""Many adapters in one batch against PEFT with one adapter at a time, row by row."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_contract.errors import FailedPrecondition
from loraplex_kernels.lora.segments import AdapterPairs
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights
from tests.worker.model.paged_driver import PagedDriver, Sequence
from tests.worker.model.peft_adapters import PeftAdapter, make_adapter
from tests.worker.model.tiny_models import make_model, save

pytestmark = pytest.mark.usefixtures("both_cpu_paths")
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS: list[dict[str, Any]] = [
    {"r": 1, "lora_alpha": 2, "target_modules": ALL_LINEAR},
    {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"r": 64, "lora_alpha": 16, "target_modules": ALL_LINEAR, "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["k_proj", "up_proj", "down_proj"],
        "rank_pattern": {"layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"k_proj": 9},
    },
    {"r": 3, "lora_alpha": 5, "target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    {"r": 5, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    {"r": 2, "lora_alpha": 3, "target_modules": ["lm_head"]},
    {"r": 4, "lora_alpha": 6, "target_modules": [*ALL_LINEAR, "lm_head"], "lora_bias": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL_LINEAR, "use_dora": True},
    {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head", "up_proj"], "use_dora": True},
    {"r": 3, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    {"r": 3, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"], "use_dora": True},
]
LENGTHS = (11, 3, 19, 7, 9, 14, 6, 12, 5, 8, 10, 4, 13, 7, 9, 6)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    base: Any
    folder: Path
    config: ModelConfig
    adapters: tuple[PeftAdapter, ...]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = make_model("qwen2-window")
    folder = save(base, tmp_path_factory.mktemp("base"))
    adapters = tuple(make_adapter(base, seed, **options) for seed, options in enumerate(CONFIGS))
    return World(base=base, folder=folder, config=ModelConfig.from_folder(folder), adapters=adapters)


def decoder_of(world: World, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(world.config, load_weights(world.folder, world.config, dtype))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in LENGTHS]


def base_logits(world: World, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = world.base(input_ids=torch.tensor([tokens])).logits[0]
    return logits.float()


def mixed_rows(
    world: World, weights: tuple[LoraWeights, ...], dtype: torch.dtype, chunks: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """One batch of a base sequence, every adapter alone, and two more of one of them: ours, and PEFT's."""
    owners = [None, *range(7), 2, 0, *range(7, len(CONFIGS)), 8]
    pairs: list[AdapterPairs] = [() if owner is None else ((owner, 1.0),) for owner in owners]
    sequences = [Sequence(tokens, pair) for tokens, pair in zip(prompts(), pairs, strict=True)]
    got = PagedDriver(decoder_of(world, dtype), num_pages=80, adapters=weights).run(sequences, chunks)
    wanted = [
        base_logits(world, tokens) if owner is None else world.adapters[owner].logits(tokens)
        for tokens, owner in zip(prompts(), owners, strict=True)
    ]
    return got, wanted


@pytest.mark.parametrize("chunks", [[32], [1], [5, 2, 1]])
def test_each_row_of_a_mixed_batch_equals_peft_with_that_adapter_alone(world: World, chunks: list[int]) -> None:
    weights = tuple(adapter.weights(world.config) for adapter in world.adapters)
    got, wanted = mixed_rows(world, weights, torch.float32, chunks)
    for number, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert torch.max(torch.abs(mine - theirs)) < 1e-4 * torch.max(torch.abs(theirs)), number
        assert torch.equal(mine.argmax(-1), theirs.argmax(-1)), number


def test_weighted_pair_equals_peft_with_the_combined_adapter(world: World) -> None:
    """PEFT's ``cat`` combination is exact: its delta is the weighted sum of the deltas."""
    base = make_model("llama")
    first = make_adapter(base, 21, r=4, lora_alpha=8, target_modules=ALL_LINEAR)
    second = make_adapter(base, 22, r=6, lora_alpha=3, target_modules=ALL_LINEAR)
    combined = first.model
    combined.add_adapter("second", second.model.peft_config["default"])
    state = {
        name.replace(".default", ".second"): value
        for name, value in second.model.state_dict().items()
        if "lora_" in name
    }
    combined.load_state_dict(state, strict=False)
    combined.add_weighted_adapter(["default", "second"], [0.7, 1.6], "both", combination_type="cat")
    folder = save(base, world.folder / "llama")
    config = ModelConfig.from_folder(folder)
    decoder = Decoder(config, load_weights(folder, config, torch.float32))
    driver = PagedDriver(decoder, adapters=(first.weights(config), second.weights(config)))
    tokens = prompts()[:3]
    mixed, lone, plain = driver.run(
        [Sequence(tokens[0], ((0, 0.7), (1, 1.6))), Sequence(tokens[1], ((1, 1.0),)), Sequence(tokens[2])], [4, 1]
    )
    combined.set_adapter("both")
    torch.testing.assert_close(mixed, first.logits(tokens[0]), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(lone, second.logits(tokens[1]), atol=2e-4, rtol=1e-4)
    with combined.disable_adapter():
        torch.testing.assert_close(plain, first.logits(tokens[2]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_bf16_mixed_batch_stays_near_the_float32_truth(world: World, adapter_dtype: torch.dtype) -> None:
    """Within 8 % of PEFT in float32 over a random model with large deltas; the base row alone is within 6 %."""
    weights = tuple(adapter.weights(world.config, adapter_dtype) for adapter in world.adapters)
    got, wanted = mixed_rows(world, weights, torch.bfloat16, [5, 2, 1])
    for number, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        error = torch.linalg.norm(mine - theirs) / torch.linalg.norm(theirs)
        assert error < (0.06 if number == 0 else 0.08), number


def _far_from_peft(world: World, weights: tuple[LoraWeights, ...]) -> bool:
    got, wanted = mixed_rows(world, weights, torch.float32, [6, 1])
    return any(not torch.allclose(mine, theirs, atol=1e-2) for mine, theirs in zip(got, wanted, strict=True))


def test_the_comparison_notices_swapped_adapters_a_dropped_scale_and_a_skipped_module(world: World) -> None:
    right = [adapter.weights(world.config) for adapter in world.adapters]
    assert not _far_from_peft(world, tuple(right))
    assert _far_from_peft(world, (right[1], right[0], *right[2:]))
    spec = world.adapters[0].spec
    unscaled = dataclasses.replace(spec, sites=tuple(dataclasses.replace(site, scale=1.0) for site in spec.sites))
    wrong = dataclasses.replace(world.adapters[0], spec=unscaled)
    assert _far_from_peft(world, (wrong.weights(world.config), *right[1:]))
    for module in ("qkv", "o", "gate_up", "down"):
        layers = tuple(dataclasses.replace(layer, **{module: None}) for layer in right[0].layers)
        assert _far_from_peft(world, (dataclasses.replace(right[0], layers=layers), *right[1:])), module
    without_embed = dataclasses.replace(right[5], embed_tokens=None)
    without_head = dataclasses.replace(right[5], lm_head=None)
    for module, poorer in (("embed_tokens", without_embed), ("lm_head", without_head)):
        assert _far_from_peft(world, (*right[:5], poorer, *right[6:])), module


def test_a_batch_without_adapter_rows_runs_the_base_path_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the base path called LoRA")

    monkeypatch.setattr("loraplex_kernels.lora.grouped_cpu.add_lora", fail)
    monkeypatch.setattr("loraplex_kernels.lora.grouped_cpu.add_lora_embedding", fail)
    weights = tuple(adapter.weights(world.config) for adapter in world.adapters)
    (got,) = PagedDriver(decoder_of(world), adapters=weights).run([Sequence(prompts()[0])], [4, 1])
    torch.testing.assert_close(got, base_logits(world, prompts()[0]), atol=2e-4, rtol=1e-4)


def test_num_bytes_counts_every_tensor_in_the_compute_dtype(world: World) -> None:
    for adapter in world.adapters:
        assert adapter.weights(world.config).num_bytes == adapter.spec.num_bytes
        assert adapter.weights(world.config, torch.bfloat16).num_bytes == adapter.spec.num_bytes // 2


HEADS: dict[str, dict[str, Any]] = {
    "bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "dora": {"target_modules": ["lm_head"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "lora_alpha": 0},
}


@pytest.mark.parametrize("number", HEADS)
def test_a_weight_multiplies_the_whole_change_of_each_kind(world: World, number: str) -> None:
    """One head alone, where the change of the logits is the change of one linear. The base ties its head."""
    base = make_model("llama-tied-multihead")
    options = HEADS[number]
    adapter = make_adapter(base, 31, **options)
    folder = save(base, world.folder / f"tied-{number}")
    config = ModelConfig.from_folder(folder)
    decoder = Decoder(config, load_weights(folder, config, torch.float32))
    tokens = prompts()[0]
    driver = PagedDriver(decoder, adapters=(adapter.weights(config),))
    halved, plain = driver.run([Sequence(tokens, ((0, -0.5),)), Sequence(tokens)], [4, 1])
    torch.testing.assert_close(halved, plain - 0.5 * (adapter.logits(tokens) - plain), atol=2e-4, rtol=1e-4)


def test_a_device_other_than_the_cpu_refuses_the_kinds_it_cannot_serve(world: World) -> None:
    for number, kind in ((7, "lora_bias"), (8, "dora"), (10, "modules_to_save")):
        adapter = world.adapters[number]
        with pytest.raises(FailedPrecondition, match=kind) as caught:
            LoraWeights.from_tensors(
                adapter.spec, adapter.tensors, dtype=torch.float32, config=world.config, device="meta"
            )
        assert caught.value.reason == "ADAPTER_FEATURE_UNSUPPORTED"


def test_dora_without_the_base_models_folder_or_with_a_column_of_norm_zero_is_refused(world: World) -> None:
    adapter = world.adapters[8]
    nowhere = dataclasses.replace(world.config, folder=None)
    with pytest.raises(FailedPrecondition, match="use_dora needs the weights of the base model"):
        adapter.weights(nowhere)
    base = make_model("llama")
    with torch.no_grad():
        base.model.layers[1].self_attn.q_proj.weight[3] = 0
    zero = make_adapter(base, 5, r=1, target_modules=["q_proj"], use_dora=True)
    name = "layers.1.q_proj.B"
    dtype, shape, data = zero.tensors[name]
    zeroed = dataclasses.replace(zero, tensors={**zero.tensors, name: (dtype, shape, bytes(len(data)))})
    config = ModelConfig.from_folder(save(base, world.folder / "zero"))
    with pytest.raises(FailedPrecondition, match=r"layers\.1\.q_proj: the norm") as caught:
        zeroed.weights(config)
    assert caught.value.reason == "ADAPTER_NONFINITE"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("layers.0.q_proj.A"), "layers.0.q_proj.A is missing"),
        (lambda tensors: tensors.update({"layers.0.w.A": ("F32", (1, 1), bytes(4))}), "layers.0.w.A"),
        (lambda tensors: tensors.update({"layers.0.q_proj.A": ("F32", (8, 47), bytes(8 * 47 * 4))}), "layers.0.q_proj"),
        (lambda tensors: tensors.update({"layers.0.q_proj.A": ("F32", (8, 48), bytes(12))}), "12 bytes"),
        (lambda tensors: tensors.update({"layers.0.q_proj.A": ("I32", (8, 48), bytes(8 * 48 * 4))}), "I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(world: World, change: Any, named: str) -> None:
    adapter = world.adapters[1]
    tensors = dict(adapter.tensors)
    change(tensors)
    with pytest.raises(FailedPrecondition, match=named):
        LoraWeights.from_tensors(adapter.spec, tensors, dtype=torch.float32, config=world.config)
