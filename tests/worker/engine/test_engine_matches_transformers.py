"""The engine over the real decoder gives what transformers and PEFT generate, also across a preemption."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worker.engine.sequence_run import EngineRun, admit, using
from tests.worker.model.peft_adapters import PeftAdapter, make_adapter
from tests.worker.model.tiny_models import make_model, save

from loraplex_worker.engine.command import Admit, AttachAdapter, Retire
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights

_NUM_TOKENS = 12
_PROMPTS = {1: (5, 9, 33, 2, 71), 2: tuple(range(40, 65)), 3: (96,)}


@dataclasses.dataclass(frozen=True)
class Oracle:
    base: Any
    adapters: dict[str, PeftAdapter]
    decoder: Decoder

    def generate(self, prompt: tuple[int, ...], digest: str | None, **options: Any) -> list[int]:
        model = self.adapters[digest].model if digest else self.base
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def engine(self) -> EngineRun:
        config = EngineConfig(num_pages=80, page_size=4, max_context_tokens=128, max_step_tokens=10)
        engine = Engine.for_decoder(self.decoder, config)
        for digest, adapter in self.adapters.items():
            weights = adapter.weights(self.decoder.config)
            engine.apply(AttachAdapter(digest=digest, weights=weights, num_pages=3))
        return EngineRun(engine)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    base = make_model("llama")
    folder: Path = save(base, tmp_path_factory.mktemp("tiny"))
    config = ModelConfig.from_folder(folder)
    adapters = {
        "small": make_adapter(base, 1, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "large": make_adapter(base, 2, r=9, lora_alpha=9, target_modules="all-linear"),
    }
    return Oracle(base, adapters, Decoder(config, load_weights(folder, config, torch.float32)))


def command(sequence_id: int, digest: str | None, **changes: Any) -> Admit:
    adapters = using(digest) if digest else ()
    return admit(sequence_id, _PROMPTS[sequence_id % 10], max_tokens=_NUM_TOKENS, adapters=adapters, **changes)


def test_a_mixed_batch_gives_what_each_adapter_generates_alone(oracle: Oracle):
    run = oracle.engine()
    wanted = {10 * row + prompt: digest for row, digest in enumerate((None, "small", "large")) for prompt in _PROMPTS}
    for sequence_id, digest in wanted.items():
        run.engine.apply(command(sequence_id, digest))
    run.until_idle()
    assert max(report.num_rows for report in run.reports) == 10
    for sequence_id, digest in wanted.items():
        assert run.sequences[sequence_id].tokens == oracle.generate(_PROMPTS[sequence_id % 10], digest), sequence_id


@pytest.mark.parametrize("num_before", [1, 5, 11])
@pytest.mark.parametrize("digest", [None, "large"])
def test_a_preempted_sequence_ends_as_transformers_would(oracle: Oracle, num_before: int, digest: str | None):
    run = oracle.engine()
    run.engine.apply(command(2, digest, grant_tokens=num_before))
    run.engine.apply(command(1, "small"))
    run.until_idle()
    run.engine.apply(Retire(sequence_id=2))
    # Somebody else takes and dirties the pages meanwhile.
    run.engine.apply(command(3, "small"))
    run.until_idle()
    run.engine.apply(command(2, digest, emitted_ids=tuple(run.sequences[2].tokens)))
    run.until_idle()
    assert run.sequences[2].tokens == oracle.generate(_PROMPTS[2], digest)


def test_the_repetition_penalty_is_that_of_transformers(oracle: Oracle):
    run = oracle.engine()
    run.engine.apply(command(1, "large", repetition_penalty=1.8))
    run.until_idle()
    expected = oracle.generate(_PROMPTS[1], "large", repetition_penalty=1.8)
    assert run.sequences[1].tokens == expected != oracle.generate(_PROMPTS[1], "large")


def test_a_seeded_sequence_gives_the_same_tokens_alone_in_a_batch_and_after_a_preemption(oracle: Oracle):
    settings = {"temperature": 0.8, "top_p": 0.95, "seed": 1234}
    alone = oracle.engine()
    alone.engine.apply(command(2, "large", **settings))
    alone.until_idle()
    run = oracle.engine()
    for other in (11, 21, 23):
        run.engine.apply(command(other, "small", temperature=1.0, seed=other))
    run.engine.apply(command(2, "large", grant_tokens=6, **settings))
    run.until_idle()
    run.engine.apply(Retire(sequence_id=2))
    run.engine.apply(command(2, "large", emitted_ids=tuple(run.sequences[2].tokens), **settings))
    run.until_idle()
    assert run.sequences[2] == alone.sequences[2]


def test_logprobs_equal_the_log_softmax_of_transformers(oracle: Oracle):
    run = oracle.engine()
    run.engine.apply(command(2, "small", prompt_logprobs=0, top_logprobs=2))
    run.until_idle()
    tokens = [*_PROMPTS[2], *run.sequences[2].tokens]
    expected = oracle.adapters["small"].logits(tokens).log_softmax(dim=1)
    entries = [*run.prompts[2].entries[1:], *run.sequences[2].logprobs]
    assert len(entries) == len(tokens) - 1
    for position, entry in enumerate(entries):
        assert entry is not None
        assert entry.logprob == pytest.approx(expected[position, tokens[position + 1]].item(), abs=2e-4)
