"""The base decoder against transformers, float32, over paged KV with scrambled and poisoned pages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights
from tests.worker.model.paged_driver import PagedDriver, Sequence
from tests.worker.model.tiny_models import VARIANTS, make_model, save

pytestmark = pytest.mark.usefixtures("both_cpu_paths")
LENGTHS = (23, 1, 9, 40, 8, 16)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config = ModelConfig.from_folder(folder)
    return Decoder(config, load_weights(folder, config, dtype))


def prompts(vocab: int = 97) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in LENGTHS]


def expected(model: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits.float()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_for_prefill_chunks_and_decode_mixed(variant: str, tmp_path: Path) -> None:
    model = make_model(variant)
    decoder = load(save(model, tmp_path))
    wanted = [expected(model, tokens) for tokens in prompts()]
    for chunks in ([64], [7, 3, 5, 1], [1], [3, 1, 4, 11]):
        driver = PagedDriver(decoder)
        got = driver.run([Sequence(tokens) for tokens in prompts()], chunks)
        for tokens, mine, theirs in zip(prompts(), got, wanted, strict=True):
            message = f"{variant}, chunks {chunks}, {len(tokens)} tokens"
            assert torch.allclose(mine, theirs, atol=2e-4, rtol=1e-4), message
            assert torch.equal(mine.argmax(-1), theirs.argmax(-1)), message


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_page_size_does_not_change_the_logits(page_size: int, tmp_path: Path) -> None:
    model = make_model("mistral-window")
    decoder = load(save(model, tmp_path))
    driver = PagedDriver(decoder, page_size=page_size, num_pages=120)
    got = driver.run([Sequence(tokens) for tokens in prompts()], [6, 1, 2])
    for mine, tokens in zip(got, prompts(), strict=True):
        torch.testing.assert_close(mine, expected(model, tokens), atol=2e-4, rtol=1e-4)


def test_decode_rows_split_into_several_gather_groups_give_the_same_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("qwen2-window")
    decoder = load(save(model, tmp_path))
    monkeypatch.setattr("loraplex_worker.model.cpu_attention._GATHER_BYTES", 3000)
    monkeypatch.setattr("loraplex_worker.model.cpu_attention._QUERY_BLOCK", 4)
    got = PagedDriver(decoder).run([Sequence(tokens) for tokens in prompts()], [13, 1, 1, 1, 9, 1])
    for mine, tokens in zip(got, prompts(), strict=True):
        torch.testing.assert_close(mine, expected(model, tokens), atol=2e-4, rtol=1e-4)


def test_pages_left_full_of_nan_by_a_dead_sequence_do_not_reach_the_next_owner(tmp_path: Path) -> None:
    model = make_model("llama")
    driver = PagedDriver(load(save(model, tmp_path)), num_pages=12)
    tokens = prompts()[3]
    for _ in range(3):
        sequence = Sequence(tokens)
        (got,) = driver.run([sequence], [5, 1])
        torch.testing.assert_close(got, expected(model, tokens), atol=2e-4, rtol=1e-4)
        driver.release(sequence)


def relative_error(got: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(got - truth) / torch.linalg.norm(truth))


def test_bf16_is_as_near_to_the_float32_truth_as_transformers_in_bf16_is(tmp_path: Path) -> None:
    """Both round differently; over all prompts ours may be at most 1.25 times as far off, and 6 % in all."""
    model = make_model("llama").to(torch.bfloat16)
    decoder = load(save(model, tmp_path), torch.bfloat16)
    got = torch.cat(PagedDriver(decoder).run([Sequence(tokens) for tokens in prompts()], [7, 1]))
    theirs = torch.cat([expected(model, tokens) for tokens in prompts()])
    truth = torch.cat([expected(model.float(), tokens) for tokens in prompts()])
    assert relative_error(got, truth) < min(0.06, 1.25 * relative_error(theirs, truth))


def test_only_wanted_rows_get_logits_and_the_result_may_be_changed_in_place(tmp_path: Path) -> None:
    decoder = load(save(make_model("llama"), tmp_path))
    driver = PagedDriver(decoder)
    (logits,) = driver.run([Sequence([1, 2, 3])], [3])
    logits.mul_(2.0)
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 97)


def test_warm_up_runs_both_kinds_of_attention_without_touching_anything(tmp_path: Path) -> None:
    model = make_model("qwen3")
    decoder = load(save(model, tmp_path))
    decoder.warm_up()
    (got,) = PagedDriver(decoder).run([Sequence([5, 6, 7])], [2, 1])
    torch.testing.assert_close(got, expected(model, [5, 6, 7]), atol=2e-4, rtol=1e-4)
