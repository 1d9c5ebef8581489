"""The sampler against a plain float64 reference that sorts, loops and knows no batch."""

import itertools

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings

from loraplex_worker.engine.command import Sampling, Stop
from loraplex_worker.engine.draw_batch import draw_batch
from loraplex_worker.engine.draw_row import draw_row
from loraplex_worker.engine.random_stream import uniform
from loraplex_worker.engine.sampler import choose_on_device, sample
from loraplex_worker.engine.sampling_state import SamplingState

Array = npt.NDArray[np.float64]
NO_STOP = Stop(max_tokens=1000)


def state(
    sampling: Sampling, *, stop: Stop = NO_STOP, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()
) -> SamplingState:
    return SamplingState(sampling, stop, prompt_ids=prompt, output_ids=output)


def reference_scores(
    logits: Array, sampling: Sampling, stop: Stop, prompt: tuple[int, ...], output: tuple[int, ...]
) -> Array:
    scores = logits.astype(np.float64).copy()
    for token_id in set(prompt) | set(output):
        factor = sampling.repetition_penalty
        scores[token_id] = scores[token_id] * factor if scores[token_id] < 0 else scores[token_id] / factor
    for token_id in set(output):
        scores[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * output.count(token_id)
    for token_id, bias in sampling.logit_bias:
        scores[token_id] += bias
    banned = set(sampling.banned_token_ids)
    if len(output) < stop.min_tokens:
        banned |= set(stop.stop_token_ids)
    if sampling.allowed_token_ids:
        banned |= set(range(len(scores))) - set(sampling.allowed_token_ids)
    scores[list(banned)] = -np.inf
    return scores


def reference_weights(scores: Array, sampling: Sampling) -> Array:
    """Unnormalised weights of the tokens that survive the filters."""
    z = (scores - scores.max()) / sampling.temperature
    weights = np.exp(z)
    if 0 < sampling.top_k < len(z):
        weights[weights < np.sort(weights)[-sampling.top_k]] = 0.0
    if sampling.top_p < 1.0:
        ordered = np.sort(weights)[::-1]
        num_kept = int(np.searchsorted(np.cumsum(ordered), sampling.top_p * weights.sum())) + 1
        weights[weights < ordered[min(num_kept, len(ordered)) - 1]] = 0.0
    weights[weights < sampling.min_p] = 0.0
    kept: Array = weights
    return kept


def reference_token(
    logits: Array,
    sampling: Sampling,
    stop: Stop = NO_STOP,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
) -> int:
    scores = reference_scores(logits, sampling, stop, prompt, output)
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    weights = reference_weights(scores, sampling)
    target = uniform(sampling.seed, len(output)) * weights.sum()
    return int(np.searchsorted(np.cumsum(weights), target, side="right"))


def random_logits(seed: int, vocab_size: int, spread: float = 3.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, vocab_size)) * spread).float()


token_ids = st.lists(st.integers(0, 199), max_size=6).map(tuple)
any_sampling = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 40, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.8, -0.8]),
    logit_bias=st.lists(st.tuples(st.integers(0, 199), st.sampled_from([-20.0, 2.5])), max_size=3).map(tuple),
    allowed_token_ids=st.one_of(st.just(()), st.lists(st.integers(0, 99), min_size=1, max_size=20).map(tuple)),
    banned_token_ids=st.lists(st.integers(100, 199), max_size=20).map(tuple),
    seed=st.integers(0, 2**64 - 1),
)


@pytest.mark.slow
@given(
    sampling=any_sampling,
    logits_seed=st.integers(0, 10**6),
    vocab_size=st.sampled_from([200, 256, 1000, 5003]),
    prompt=token_ids,
    output=token_ids,
    min_tokens=st.sampled_from([0, 3]),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_every_combination_of_parameters_gives_the_token_of_the_reference(
    sampling: Sampling,
    logits_seed: int,
    vocab_size: int,
    prompt: tuple[int, ...],
    output: tuple[int, ...],
    min_tokens: int,
):
    stop = Stop(max_tokens=100, min_tokens=min_tokens, stop_token_ids=(150, 160))
    logits = random_logits(logits_seed, vocab_size)
    expected = reference_token(logits[0].double().numpy(), sampling, stop, prompt, output)
    one = state(sampling, stop=stop, prompt=prompt, output=output)
    assert sample(logits, [one]) == [expected]
    assert choose_on_device(logits, [0], [one]) == [expected]


def test_each_pair_of_parameters_works_together():
    unusual = {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.6,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": ((3, 4.0), (3, -1.0)),
        "allowed_token_ids": (1, 2, 3, 4, 5),
        "banned_token_ids": (5, 7),
    }
    logits = random_logits(1, 300)
    for left, right in itertools.combinations(unusual, 2):
        for temperature in (0.0, 1.0):
            fields = {"temperature": temperature, "seed": 5, left: unusual[left], right: unusual[right]}
            sampling = Sampling(**fields)  # type: ignore[arg-type]
            expected = reference_token(logits[0].double().numpy(), sampling, prompt=(1, 2), output=(3, 3))
            assert sample(logits, [state(sampling, prompt=(1, 2), output=(3, 3))]) == [expected], (left, right)


def test_a_row_does_not_depend_on_the_rest_of_its_batch():
    samplings = [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, top_k=20, seed=2),
        Sampling(),
        Sampling(temperature=1.5, top_p=0.9, seed=3),
        Sampling(temperature=1.5, top_p=0.999, top_k=900, seed=4),
        Sampling(temperature=0.9, min_p=0.1, repetition_penalty=1.2, seed=5),
        Sampling(allowed_token_ids=(4, 5, 6)),
    ] * 3
    logits = torch.cat([random_logits(row, 2500, spread=1.5) for row in range(len(samplings))])
    states = [state(sampling, prompt=(1, 2, 3), output=(4, 4)) for sampling in samplings]
    alone = [sample(logits[row : row + 1], [states[row]])[0] for row in range(len(states))]
    assert choose_on_device(logits, list(range(len(states))), states) == alone
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(states))[: 4 * seed + 2].tolist()
        assert sample(logits[order], [states[row] for row in order]) == [alone[row] for row in order]


def test_sampling_leaves_logits_and_state_as_they_were():
    logits = random_logits(3, 100)
    before = logits.clone()
    one = state(Sampling(temperature=0.8, top_k=3, logit_bias=((1, 5.0),), repetition_penalty=2.0), prompt=(1, 2))
    assert sample(logits, [one]) == sample(logits, [one])
    assert torch.equal(logits, before)
    assert one.num_output == 0


def test_greedy_ties_go_to_the_lowest_id():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0], [1.0, 1.0, 3.0, 3.0]])
    assert sample(logits, [state(Sampling())] * 3) == [1, 0, 2]
    assert sample(logits, [state(Sampling(banned_token_ids=(1,)))] * 3) == [3, 0, 2]


def test_rows_with_logits_that_are_not_finite_have_no_token_and_harm_no_other():
    logits = torch.stack([random_logits(0, 64)[0]] * 8)
    for row, value in ((1, torch.nan), (3, torch.inf), (5, -torch.inf), (7, torch.nan)):
        logits[row, row * 7] = value
    states = [state(Sampling()), state(Sampling())] + [state(Sampling(temperature=1.0, top_p=0.5, top_k=9))] * 6
    tokens = sample(logits, states)
    assert [token is None for token in tokens] == [row in (1, 3, 5, 7) for row in range(8)]
    assert tokens[2] == tokens[4] == tokens[6] == sample(logits[2:3], states[2:3])[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_that_leave_no_token_give_none_and_harm_no_other(temperature: float):
    logits = torch.cat([random_logits(0, 64)] * 2)
    empty = Sampling(allowed_token_ids=(4,), banned_token_ids=(4,), temperature=temperature, top_p=0.9, top_k=3)
    states = [state(empty), state(Sampling(temperature=temperature))]
    tokens = sample(logits, states)
    assert tokens[0] is None
    assert tokens[1] == sample(logits[1:], states[1:])[0]
    assert choose_on_device(logits, [0, 1], states) == tokens


def draws(sampling_fields: dict[str, object], logits: torch.Tensor, num_draws: int) -> Array:
    samplings = [Sampling(seed=seed, **sampling_fields) for seed in range(num_draws)]  # type: ignore[arg-type]
    tokens = sample(logits.expand(num_draws, -1), [state(sampling) for sampling in samplings])
    return np.bincount(np.array(tokens, dtype=np.int64), minlength=logits.shape[1]).astype(np.float64)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.3, "top_k": 6},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 2.0, "top_p": 0.9, "top_k": 12, "min_p": 0.02},
    ],
)
def test_frequencies_follow_the_filtered_distribution(fields: dict[str, object]):
    logits = random_logits(11, 24, spread=1.5)
    weights = reference_weights(logits[0].double().numpy(), Sampling(**fields))  # type: ignore[arg-type]
    num_draws = 20000
    counts = draws(fields, logits, num_draws)
    expected = weights / weights.sum() * num_draws
    assert not counts[expected == 0].any(), "a token was drawn that the filters exclude"
    kept = expected > 5
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = kept.sum() - 1
    # Mean of chi-square plus five standard deviations; the seeds are fixed, so this either always holds or never.
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_a_token_with_no_weight_is_never_drawn():
    logits = torch.full((1, 1000), -200.0)
    logits[0, [130, 700]] = 0.0
    counts = draws({"temperature": 1.0}, logits, 500)
    assert set(np.flatnonzero(counts)) == {130, 700}


@pytest.mark.parametrize("uniform_value", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_give_tokens_with_weight(uniform_value: float):
    allowed = np.zeros(700, dtype=bool)
    allowed[200:260] = allowed[400:450] = True
    sampling = Sampling(temperature=1.0)
    for seed in range(100):
        logits = random_logits(seed, 700)
        logits[0, ~torch.from_numpy(allowed)] = -torch.inf
        values = logits[0].numpy()
        tokens = (
            draw_row(values, sampling, uniform_value, np.empty_like(values)),
            draw_batch(logits, [sampling], [uniform_value])[0],
        )
        assert tokens == ((200, 200) if uniform_value == 0.0 else (449, 449))


def test_ties_at_the_edge_of_a_filter_stay_together():
    logits = torch.zeros(1, 10)
    logits[0, 4] = 1.0
    assert (draws({"temperature": 1.0, "top_k": 2}, logits, 400) > 0).all()
    assert (draws({"temperature": 1.0, "top_p": 0.3}, logits, 400) > 0).all()
    assert set(np.flatnonzero(draws({"temperature": 1.0, "top_k": 1}, logits, 50))) == {4}


def test_a_wide_nucleus_of_a_large_vocabulary_is_exact():
    logits = random_logits(5, 9000, spread=0.3)
    for top_p in (0.3, 0.9, 0.999):
        sampling = Sampling(temperature=1.0, top_p=top_p, seed=77)
        expected = reference_token(logits[0].double().numpy(), sampling)
        assert sample(logits, [state(sampling)]) == [expected]
        assert choose_on_device(logits, [0], [state(sampling)]) == [expected]


def test_the_smallest_temperature_is_greedy_and_never_breaks():
    logits = random_logits(6, 50)
    for temperature in (1e-45, 1e-30, 1e-6):
        assert sample(logits, [state(Sampling(temperature=temperature))]) == sample(logits, [state(Sampling())])


def test_the_draw_depends_on_seed_and_position_alone():
    logits = torch.zeros(1, 500)
    first = sample(logits, [state(Sampling(temperature=1.0, seed=9), output=(1, 2, 3))])
    assert first == sample(logits, [state(Sampling(temperature=1.0, seed=9), output=(7, 7, 7), prompt=(5,))])
    others = [
        sample(logits, [state(Sampling(temperature=1.0, seed=9), output=(1,) * position)])[0] for position in range(3)
    ]
    assert len({first[0], *others}) == 4


def test_penalties_count_what_was_observed():
    sampling = Sampling(repetition_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.3)
    growing = state(sampling, prompt=(1, 2))
    output: tuple[int, ...] = ()
    for step in range(150):
        logits = random_logits(step, 120, spread=1.0)
        expected = reference_token(logits[0].double().numpy(), sampling, NO_STOP, (1, 2), output)
        assert sample(logits, [growing]) == [expected]
        growing.observe(expected)
        output = (*output, expected)
