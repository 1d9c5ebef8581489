"""Design section 8, rule 2: every output equals what PEFT gives, whatever else is in the batch. On the real model."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.ingest import ingest
from loraplex_adapters.limits import Limits
from loraplex_adapters.spec import AdapterSpec, site_key
from loraplex_adapters.store import AdapterStore
from loraplex_worker.engine.command import AdapterWeight, Admit, AttachAdapter, Sampling, Stop
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights
from tests.worker.parity_adapters import CONFIGS, PeftOracle, Row
from tests.worker.parity_forward import last_logits

NUM_TOKENS = 12
PROMPTS = (
    "The capital of France is",
    "Write a short poem about the sea.",
    "def fibonacci(n):",
    "List three primary colours:",
    "Once upon a time, in a small village by the river,",
    "SELECT name FROM",
    "The three laws of thermodynamics say that energy",
    "Hello! How are you",
)
PAIR = (("rslora-qv", 0.75), ("mlp-only", -0.5))
BF16_LOGIT_TOLERANCE = 0.08
"""Relative error (L2, of logits less their mean) of our bf16 against PEFT's fp32 on the same tokens, at worst."""
BF16_AGAINST_PEFT = 1.25
"""Our worst and our median row, against the worst and the median of PEFT's own bf16."""

Stored = tuple[AdapterSpec, dict]


@pytest.fixture(scope="module")
def oracle(smollm2_folder) -> PeftOracle:
    return PeftOracle(smollm2_folder, torch.float32)


@pytest.fixture(scope="module")
def stored(oracle, smollm2_folder, tmp_path_factory) -> dict[str, Stored]:
    """Every adapter after the whole way: saved by PEFT, validated, stored, read back."""
    folder = tmp_path_factory.mktemp("parity")
    store = AdapterStore(folder / "store")
    base = BaseShape.from_folder(smollm2_folder)
    result = {}
    for name, path in oracle.save(folder / "peft").items():
        report = ingest(path, base=base, store=store, limits=Limits())
        result[name] = (store.read_spec(report.spec.digest), dict(store.read_tensors(report.spec.digest)))
    return result


@pytest.fixture(scope="module")
def prompts(smollm2_folder) -> list[tuple[int, ...]]:
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    return [tuple(tokenizer.encode(prompt).ids) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def rows(prompts) -> list[Row]:
    """Every adapter times eight prompts, eight base rows and two rows of a weighted pair, shuffled."""
    mixed = [Row(adapters=((name, 1.0),), prompt_ids=prompt) for name in CONFIGS for prompt in prompts]
    mixed += [Row(adapters=(), prompt_ids=prompt) for prompt in prompts]
    mixed += [Row(adapters=PAIR, prompt_ids=prompt) for prompt in prompts[2:4]]
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(3)).tolist()
    return [mixed[index] for index in order]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The engine's answers, and proof that they came from mixed steps."""

    tokens: list[tuple[int, ...]]
    most_adapters_in_a_step: int


def load_decoder(folder: Path, dtype: torch.dtype) -> Decoder:
    config = ModelConfig.from_folder(folder)
    return Decoder(config, load_weights(folder, config, dtype))


@pytest.fixture(scope="module")
def decoder(smollm2_folder) -> Decoder:
    return load_decoder(smollm2_folder, torch.float32)


def attach(engine: Engine, decoder: Decoder, stored: Mapping[str, Stored]) -> None:
    for name, (spec, tensors) in stored.items():
        weights = LoraWeights.from_tensors(spec, tensors, dtype=decoder.lora_dtype, config=decoder.config)
        engine.apply(AttachAdapter(digest=name, weights=weights, num_pages=3))


def serve(decoder: Decoder, stored: Mapping[str, Stored], rows: Sequence[Row]) -> Served:
    """All rows at once through one engine, greedy."""
    shape = EngineConfig(num_pages=512, max_context_tokens=256, max_sequences=128, max_step_tokens=200)
    engine = Engine.for_decoder(decoder, shape)
    attach(engine, decoder, stored)
    for number, row in enumerate(rows):
        adapters = tuple(AdapterWeight(digest=name, weight=weight) for name, weight in row.adapters)
        stop = Stop(max_tokens=NUM_TOKENS)
        admit = Admit(
            sequence_id=number + 1,
            prompt_ids=row.prompt_ids,
            adapters=adapters,
            sampling=Sampling(),
            stop=stop,
            grant_tokens=NUM_TOKENS,
        )
        engine.apply(admit)
    return drain(engine, len(rows))


def drain(engine: Engine, num_sequences: int) -> Served:
    tokens: dict[int, list[int]] = {number: [] for number in range(1, num_sequences + 1)}
    most = 0
    for _ in range(1000):
        report = engine.step()
        if report is None:
            break
        most = max(most, len(report.adapter_digests))
        for emission in report.emissions:
            assert emission.first_index == len(tokens[emission.sequence_id])
            tokens[emission.sequence_id] += emission.token_ids
    engine.check()
    return Served(tokens=[tuple(tokens[number]) for number in sorted(tokens)], most_adapters_in_a_step=most)


def judge(oracle: PeftOracle, rows: Sequence[Row], answers: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """[NUM_TOKENS + 1, vocab] of each row: PEFT's logits before each token of the answer, and after the last."""
    logits: dict[int, torch.Tensor] = {}
    for adapters in sorted({row.adapters for row in rows}):
        picked = [number for number, row in enumerate(rows) if row.adapters == adapters]
        scores = oracle.logits(adapters, [rows[number].prompt_ids + answers[number] for number in picked])
        for number, score in zip(picked, scores, strict=True):
            logits[number] = score[len(rows[number].prompt_ids) - 1 :].clone()
    return [logits[number] for number in range(len(rows))]


def assert_greedy(rows: Sequence[Row], answers: Sequence[tuple[int, ...]], judged: Sequence[torch.Tensor]) -> None:
    """Each answer is PEFT's greedy continuation: at every position PEFT's likeliest next token is the next token.

    By induction over positions this is the same as generating with PEFT token by token, at a tenth of the time.
    """
    for row, answer, logits in zip(rows, answers, judged, strict=True):
        expected = tuple(logits[:-1].argmax(dim=-1).tolist())
        assert answer == expected, f"{row.adapters or 'base model'}: {answer} instead of {expected}"


@pytest.fixture(scope="module")
def served(decoder, stored, rows) -> Served:
    return serve(decoder, stored, rows)


@pytest.fixture(scope="module")
def judged(oracle, rows, served) -> list[torch.Tensor]:
    return judge(oracle, rows, served.tokens)


def test_every_kind_of_adapter_by_eight_prompts_equals_peft_in_one_mixed_batch(rows, served, judged):
    assert len(rows) == 8 * (len(CONFIGS) + 1) + 2
    assert served.most_adapters_in_a_step == len(CONFIGS)
    assert_greedy(rows, served.tokens, judged)


def test_each_adapter_changes_the_answer_of_the_base_model(rows, served):
    """Otherwise parity would prove nothing."""
    base_of = {row.prompt_ids: answer for row, answer in zip(rows, served.tokens, strict=True) if not row.adapters}
    for name in CONFIGS:
        answers = [
            answer != base_of[row.prompt_ids]
            for row, answer in zip(rows, served.tokens, strict=True)
            if row.adapters == ((name, 1.0),) and row.prompt_ids in base_of
        ]
        assert any(answers), name


def swap_two(stored: dict[str, Stored]) -> dict[str, Stored]:
    return {**stored, "rank64-all": stored["mlp-only"], "mlp-only": stored["rank64-all"]}


def drop_the_scale(stored: dict[str, Stored]) -> dict[str, Stored]:
    spec, tensors = stored["mlp-only"]
    sites = tuple(dataclasses.replace(site, scale=1.0) for site in spec.sites)
    return {**stored, "mlp-only": (dataclasses.replace(spec, sites=sites), tensors)}


def skip_a_module(stored: dict[str, Stored]) -> dict[str, Stored]:
    spec, tensors = stored["mlp-only"]
    skipped = {site_key(site) for site in spec.sites if site.module == "up_proj"}
    sites = tuple(site for site in spec.sites if site_key(site) not in skipped)
    kept = {key: value for key, value in tensors.items() if key.rpartition(".")[0] not in skipped}
    return {**stored, "mlp-only": (dataclasses.replace(spec, sites=sites), kept)}


@pytest.mark.parametrize("mutate", [swap_two, drop_the_scale, skip_a_module])
def test_the_parity_check_catches(mutate: Callable, oracle, decoder, stored, rows):
    some = [row for row in rows if row.adapters == (("mlp-only", 1.0),)][:4]
    answers = serve(decoder, mutate(stored), some).tokens
    with pytest.raises(AssertionError, match="instead of"):
        assert_greedy(some, answers, judge(oracle, some, answers))


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    centred = wanted - wanted.mean(dim=-1, keepdim=True)
    difference = (given - given.mean(dim=-1, keepdim=True)) - centred
    return float(difference.norm() / centred.norm())


@pytest.fixture(scope="module")
def bf16_of_peft(smollm2_folder, rows, served, judged) -> list[float]:
    """What bfloat16 costs PEFT itself."""
    oracle = PeftOracle(smollm2_folder, torch.bfloat16)
    given = judge(oracle, rows, served.tokens)
    return [relative_error(ours[-1], wanted[-1]) for ours, wanted in zip(given, judged, strict=True)]


def test_bf16_logits_stay_within_the_stated_tolerance(smollm2_folder, stored, rows, served, judged, bf16_of_peft):
    """One mixed bf16 batch of prompts with their fp32 answers; the last logits of every row against PEFT in fp32."""
    sequences = [row.prompt_ids + answer for row, answer in zip(rows, served.tokens, strict=True)]
    ours = last_logits(load_decoder(smollm2_folder, torch.bfloat16), stored, rows, sequences)
    errors = [relative_error(given, wanted[-1]) for given, wanted in zip(ours, judged, strict=True)]
    assert max(errors) <= min(BF16_LOGIT_TOLERANCE, BF16_AGAINST_PEFT * max(bf16_of_peft))
    assert statistics.median(errors) <= BF16_AGAINST_PEFT * statistics.median(bf16_of_peft)
