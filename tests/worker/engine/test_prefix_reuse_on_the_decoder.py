"""The real decoder in float32: what starts behind pages of others gives what it gives without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worker.engine.fake_decoder import poison_taken_pages
from tests.worker.engine.sequence_run import EngineRun, admit, using
from tests.worker.model.peft_adapters import PeftAdapter, make_adapter
from tests.worker.model.tiny_models import make_model, save

from loraplex_worker.engine.command import AdapterWeight, AttachAdapter, Retire
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights

PROMPT = tuple((7 * place * place + 3) % 97 for place in range(50))
RED: dict[str, Any] = {"prefix_namespace": b"red", "max_tokens": 12}
USES = {
    "base": (),
    "one": using("all"),
    "embedding": using("embedding"),
    "pair": (*using("all", weight=0.7), *using("embedding", weight=-0.3)),
}


class Model:
    def __init__(self, decoder: Decoder, adapters: dict[str, PeftAdapter]) -> None:
        self.decoder = decoder
        self.adapters = adapters

    def engine_run(self, *, has_prefix_cache: bool = True) -> EngineRun:
        config = EngineConfig(
            num_pages=160,
            page_size=4,
            max_context_tokens=128,
            max_step_tokens=24,
            has_prefix_cache=has_prefix_cache,
        )
        engine = Engine.for_decoder(self.decoder, config)
        poison_taken_pages(engine)
        for digest, adapter in self.adapters.items():
            weights = adapter.weights(self.decoder.config)
            engine.apply(AttachAdapter(digest=digest, weights=weights, num_pages=3))
        return EngineRun(engine)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    base = make_model("llama")
    folder: Path = save(base, tmp_path_factory.mktemp("tiny"))
    config = ModelConfig.from_folder(folder)
    adapters = {
        "all": make_adapter(base, 1, r=4, lora_alpha=8, target_modules="all-linear"),
        "embedding": make_adapter(base, 2, r=3, lora_alpha=9, target_modules=["embed_tokens", "k_proj", "v_proj"]),
    }
    return Model(Decoder(config, load_weights(folder, config, torch.float32)), adapters)


def logprobs(run: EngineRun, sequence_id: int) -> list[float]:
    return [entry.logprob for entry in run.sequences[sequence_id].logprobs]


@pytest.mark.parametrize("adapters", USES.values(), ids=USES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 11}], ids=["greedy", "seeded"])
def test_outputs_with_hits_are_those_without(
    model: Model, adapters: tuple[AdapterWeight, ...], sampling: dict[str, Any]
):
    cold = model.engine_run(has_prefix_cache=False)
    warm = model.engine_run()
    for run in (cold, warm):
        run.engine.apply(admit(1, PROMPT, adapters=adapters, **RED))
        run.until_idle()
        run.engine.apply(admit(2, PROMPT, adapters=adapters, top_logprobs=0, **sampling, **RED))
        run.engine.apply(admit(3, (*PROMPT[:30], 5, 6), adapters=adapters, top_logprobs=0, **sampling, **RED))
        run.until_idle()
    assert (cold.hits, warm.hits) == ({}, {2: 48, 3: 28})
    for sequence_id in (2, 3):
        assert warm.sequences[sequence_id].tokens == cold.sequences[sequence_id].tokens
        assert logprobs(warm, sequence_id) == pytest.approx(logprobs(cold, sequence_id), abs=2e-5)


def test_a_mixed_batch_with_hits_and_preemptions_gives_what_each_gives_alone(model: Model):
    cold, warm = model.engine_run(has_prefix_cache=False), model.engine_run()
    for run in (cold, warm):
        for number, adapters in enumerate(USES.values()):
            run.engine.apply(admit(10 + number, PROMPT, adapters=adapters, **RED))
            run.engine.apply(admit(20 + number, PROMPT, adapters=adapters, grant_tokens=6, **RED))
        run.until_idle()
        for number, adapters in enumerate(USES.values()):
            run.engine.apply(Retire(sequence_id=20 + number))
            emitted = tuple(run.sequences[20 + number].tokens)
            run.engine.apply(admit(20 + number, PROMPT, adapters=adapters, emitted_ids=emitted, **RED))
        run.until_idle()
    assert cold.hits == {}
    # 50 of the prompt and 5 of the output had been computed, in whole pages: 52 tokens.
    assert {sequence_id: warm.hits[sequence_id] for sequence_id in range(20, 24)} == dict.fromkeys(range(20, 24), 52)
    assert {key: run.tokens for key, run in warm.sequences.items()} == {
        key: run.tokens for key, run in cold.sequences.items()
    }
    assert len({tuple(warm.sequences[10 + number].tokens) for number in range(4)}) == 4, "the adapters change nothing"
