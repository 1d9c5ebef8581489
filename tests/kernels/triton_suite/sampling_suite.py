"""Sampling: the tokens of the specification and of the CPU engine, whatever else is in the batch."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.kernels.triton_suite.device import DEVICE, nan, poisoned_memory, randn
from torch import Tensor

from loraplex_kernels.sampling import reference
from loraplex_kernels.sampling.launcher import Logprobs, count_tokens, sample, token_logprobs
from loraplex_kernels.sampling.rows import PROMPT_BIT, History, RowSampling, SamplingRows, mask_bits
from loraplex_worker.engine import random_stream
from loraplex_worker.engine.command import Sampling
from loraplex_worker.engine.draw_batch import draw_batch

__all__ = ["poisoned_memory"]

VOCAB = 1307  # two blocks, the second one partly used; off every multiple of 32


def choose(
    logits: Tensor, rows: list[RowSampling], *, history: History | None = None, masks: Tensor | None = None
) -> list[int]:
    tokens = torch.full((len(rows),), -7, dtype=torch.int64, device=DEVICE)
    adjusted = nan(*logits.shape, dtype=torch.float32)
    before = logits.clone()
    sample(logits, SamplingRows.of(rows, device=DEVICE), tokens, adjusted=adjusted, history=history, masks=masks)
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
    result: list[int] = tokens.tolist()
    return result


def logits_of(num_rows: int, *, spread: float = 3.0) -> Tensor:
    return randn(num_rows, VOCAB, seed=11, dtype=torch.float32) * spread


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 1},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 1.0, "top_k": VOCAB},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 1.2, "min_p": 1.0},
    {"temperature": 2.0, "top_k": 60, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1e-9},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_tokens_are_those_of_the_specification_and_of_the_cpu_engine(setting: dict[str, Any]) -> None:
    rows = [RowSampling(**setting, seed=9_000_000_000 + row, position=row) for row in range(3)]
    logits = logits_of(3)
    tokens = choose(logits, rows)
    assert tokens == [reference.choose(logits[row].cpu().double(), rows[row]) for row in range(3)]
    if setting.get("temperature"):
        fields = Sampling(**setting)
        uniforms = [random_stream.uniform(row.seed, row.position) for row in rows]
        assert tokens == draw_batch(logits.cpu(), [fields] * 3, uniforms)


def test_a_row_does_not_depend_on_its_batch() -> None:
    rows = [RowSampling(**setting, seed=5, position=7) for setting in SETTINGS[2:7:2]]
    logits = logits_of(1).repeat(3, 1)
    assert choose(logits, rows) == [choose(logits[:1], [row])[0] for row in rows]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_random_numbers_are_those_of_the_engine_for_every_seed(seed: int) -> None:
    """Over equal logits, the token tells the first ten bits of the number."""
    positions = [0, 1, 2, 1023, 2**40]
    rows = [RowSampling(temperature=1.0, seed=seed, position=position) for position in positions]
    tokens = choose(torch.zeros(5, 1024, device=DEVICE), rows)
    assert tokens == [int(random_stream.uniform(seed, position) * 1024) for position in positions]
    assert reference.uniform(seed, 3) == random_stream.uniform(seed, 3)


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(2, VOCAB, device=DEVICE)
    logits[1, [300, 1200]] = 2.0
    assert choose(logits, [RowSampling()] * 2) == [0, 300]


def test_tokens_tied_at_a_floor_stay_together() -> None:
    logits = torch.full((1, VOCAB), -50.0, device=DEVICE)
    tied = [3, 500, 900, 1306]
    logits[0, tied] = 1.0
    seed_of = {int(random_stream.uniform(seed, 0) * 4): seed for seed in range(64)}
    rows = [RowSampling(temperature=1.0, top_k=2, top_p=0.5, seed=seed_of[quarter]) for quarter in range(4)]
    assert choose(logits.repeat(4, 1), rows) == tied


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gives_no_token_and_spoils_no_other(value: float) -> None:
    logits = logits_of(3)
    logits[1, 1300] = value
    tokens = choose(logits, [RowSampling(), RowSampling(temperature=1.0), RowSampling(temperature=0.7, top_p=0.9)])
    assert tokens[1] == -1
    assert tokens[0] == int(logits[0].argmax())
    assert tokens[2] >= 0


def test_penalties_bias_and_masks_in_one_batch_with_plain_rows() -> None:
    logits = logits_of(6)
    history = History(num_slots=3, vocab_size=VOCAB, device=DEVICE)
    best = [int(token) for token in logits.argsort(dim=1, descending=True)[0, :40]]
    history.start(2, best[:10], [*best[5:20], best[5], best[5]])
    history.start(0, best[:3], [])
    rules: list[dict[str, Any]] = [{"allowed": [7, 31, 32, VOCAB - 1]}, {"banned": best[:30]}, {"banned": range(VOCAB)}]
    masks = torch.stack([mask_bits(VOCAB, **rule) for rule in rules]).to(DEVICE)
    rows = [
        RowSampling(repetition_penalty=1.7, history_slot=2),
        RowSampling(temperature=0.8, presence_penalty=1.5, frequency_penalty=0.75, history_slot=2, seed=3),
        RowSampling(mask_row=0, bias=((7, 0.5), (VOCAB - 1, 90.0))),
        RowSampling(temperature=1.0, mask_row=1, seed=4, top_k=50, repetition_penalty=1.2, history_slot=0),
        RowSampling(mask_row=2),
        RowSampling(bias=((12, 30.0), (12, 30.0), (13, 45.0))),
    ]
    logits[:2] = logits[0].clone()
    logits[3] = logits[0].clone()
    allowed = [((masks[row][torch.arange(VOCAB) // 32] >> (torch.arange(VOCAB) % 32)) & 1).bool() for row in range(3)]
    wanted = []
    for row, setting in enumerate(rows):
        counts = history.counts[setting.history_slot].cpu() if setting.has_penalty else None
        mask = allowed[setting.mask_row].cpu() if setting.mask_row >= 0 else None
        wanted.append(reference.choose(logits[row].cpu().double(), setting, counts, mask))
    assert wanted[2] == VOCAB - 1
    assert wanted[4:] == [-1, 12]
    assert choose(logits, rows, history=history, masks=masks) == wanted


def test_counting_tokens_on_the_device_is_a_history_of_one_token_more() -> None:
    history = History(num_slots=3, vocab_size=VOCAB, device=DEVICE)
    wanted = History(num_slots=3, vocab_size=VOCAB, device=DEVICE)
    history.start(0, [5, 9], [9])
    history.start(2, [1], [])
    wanted.start(0, [5, 9], [9, 9])
    wanted.start(2, [1], [1306])
    rows = SamplingRows.of([RowSampling(history_slot=slot) for slot in (2, -1, 0, 1)], device=DEVICE)
    count_tokens(torch.tensor([1306, 4, 9, -1], device=DEVICE), rows, history)
    assert torch.equal(history.counts, wanted.counts)
    assert int(history.counts[0, 9]) == PROMPT_BIT + 2


def test_logprobs_ranks_and_likeliest_tokens() -> None:
    logits = logits_of(5)
    logits[2, [4, 700, 1306]] = logits[2].max() + 1
    tokens, num_top = [10, -1, 700, 3, 8], [0, 3, 4, -1, 5]
    out = Logprobs.reserve(5, 6, device=DEVICE)
    token_logprobs(
        logits,
        torch.tensor(tokens, device=DEVICE),
        torch.tensor(num_top, dtype=torch.int32, device=DEVICE),
        out,
    )
    for row in (0, 2, 4):
        logprob, rank, top = reference.logprobs(logits[row].cpu().double(), tokens[row], num_top[row])
        assert float(out.logprob[row]) == pytest.approx(logprob, abs=1e-5)
        assert int(out.rank[row]) == rank
        assert out.top_ids[row, : num_top[row]].tolist() == [token for token, _ in top]
        assert out.top_logprobs[row, : num_top[row]].tolist() == pytest.approx([value for _, value in top], abs=1e-5)
    untouched = torch.cat((out.logprob[[1, 3]], out.top_logprobs[[1, 3]].flatten(), out.top_logprobs[4, 5:]))
    assert not untouched.any()


def test_no_rows() -> None:
    rows, none = SamplingRows.of([], device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    logits = torch.zeros(0, VOCAB, device=DEVICE)
    sample(logits, rows, none)
    count_tokens(none, rows, History(num_slots=1, vocab_size=VOCAB, device=DEVICE))
    token_logprobs(logits, none, none.int(), Logprobs.reserve(0, 1, device=DEVICE))


def test_operands_that_do_not_fit_are_refused_by_name() -> None:
    logits, tokens = logits_of(2), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    rows = SamplingRows.of([RowSampling(), RowSampling()], device=DEVICE)
    with pytest.raises(ValueError, match="logits must be"):
        sample(logits.half(), rows, tokens)
    with pytest.raises(ValueError, match="tokens must be"):
        sample(logits, rows, tokens[:1])
    with pytest.raises(ValueError, match="history"):
        sample(logits, SamplingRows.of([RowSampling(repetition_penalty=2.0, history_slot=0)] * 2), tokens)
    with pytest.raises(ValueError, match="needs a history slot"):
        SamplingRows.of([RowSampling(presence_penalty=1.0)])
    with pytest.raises(ValueError, match="seed -1"):
        SamplingRows.of([RowSampling(seed=-1)])


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"position": 3}, {"temperature": 0.2}, {"top_k": 2}, {"top_p": 0.01}, {"min_p": 0.9}],
    ids=str,
)
def test_a_wrong_parameter_is_noticed(change: dict[str, Any]) -> None:
    logits = logits_of(4)
    row = RowSampling(temperature=1.5, seed=1, position=2)
    assert choose(logits, [row] * 4) != choose(logits, [dataclasses.replace(row, **change)] * 4)
