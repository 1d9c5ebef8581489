"""The published checks of the workloads: whoever draws in another order gets other sums."""

import collections
import statistics

import pytest

from loraplex_scheduler.simulation.workload import SECOND_NS
from loraplex_scheduler.simulation.workloads.catalogue import WORKLOAD_NAMES, make_workload
from loraplex_scheduler.simulation.workloads.punica import Pattern, group_sizes, punica_arrivals, punica_lengths
from loraplex_scheduler.simulation.workloads.real_trace import MAX_TOKENS, NUM_ADAPTERS, real_trace_arrivals
from loraplex_scheduler.simulation.workloads.slora_synthetic import slora_arrivals
from loraplex_scheduler.simulation.workloads.vtc import OVERLOAD


def sums(arrivals):
    return sum(a.num_prompt_tokens for a in arrivals), sum(a.num_output_tokens for a in arrivals)


@pytest.mark.parametrize(("num_adapters", "num_distinct"), [(100, 100), (1000, 704), (2000, 907)])
def test_the_synthetic_trace_has_the_published_sums(num_adapters, num_distinct):
    arrivals = slora_arrivals(num_adapters=num_adapters, rate=10, duration_s=120)
    assert len(arrivals) == 1200
    assert sums(arrivals) == (314_805, 315_809)
    assert round(arrivals[-1].time_ns / SECOND_NS, 3) == 124.987
    assert len({arrival.adapter for arrival in arrivals}) == num_distinct


def test_the_slow_synthetic_trace_has_the_published_sums():
    arrivals = slora_arrivals(num_adapters=200, rate=2, duration_s=300)
    assert sums(arrivals) == (153_447, 155_474)
    assert round(arrivals[-1].time_ns / SECOND_NS, 1) == 301.0


@pytest.mark.parametrize(("alpha", "share"), [(1.0, 0.013), (0.6, 0.048), (0.3, 0.225), (0.1, 0.57)])
def test_alpha_skews_popularity_as_published(alpha, share):
    arrivals = slora_arrivals(num_adapters=200, rate=2, duration_s=300, alpha=alpha)
    counts = collections.Counter(arrival.adapter for arrival in arrivals)
    assert counts.most_common(1)[0][1] / len(arrivals) == pytest.approx(share, abs=0.001)


def test_the_four_patterns_have_the_published_groups():
    assert group_sizes(Pattern.DISTINCT, 32) == [1] * 32
    assert group_sizes(Pattern.IDENTICAL, 32) == [32]
    assert group_sizes(Pattern.UNIFORM, 32) == [6, 6, 5, 5, 5, 5]
    assert group_sizes(Pattern.UNIFORM, 64) == [8] * 8
    assert group_sizes(Pattern.SKEWED, 32) == [11, 7, 5, 3, 2, 2, 1, 1]
    assert group_sizes(Pattern.SKEWED, 64) == [17, 17, 11, 7, 5, 3, 2, 1, 1]
    skewed = group_sizes(Pattern.SKEWED, 1000)
    assert (len(skewed), skewed[0], sum(skewed)) == (16, 291, 1000)


def test_the_lengths_of_the_patterns_are_the_published_ones():
    prompts, outputs = zip(*punica_lengths(1000, max_tokens=2048), strict=True)
    assert round(statistics.mean(prompts), 1) == 23.6
    assert statistics.median(prompts) == 16
    assert int(statistics.mean(outputs)) == 986


def test_a_shuffled_pattern_keeps_its_groups():
    arrivals, num_adapters = punica_arrivals(Pattern.SKEWED, num_requests=1000, max_tokens=250)
    counts = collections.Counter(arrival.adapter for arrival in arrivals)
    assert sorted(counts.values(), reverse=True) == group_sizes(Pattern.SKEWED, 1000)
    assert num_adapters == 16
    assert 98_000 < sums(arrivals)[1] < 108_000


def test_the_real_trace_has_the_means_of_the_log():
    arrivals = real_trace_arrivals(rate=20, duration_s=1000, seed=3)
    inputs, outputs = (total / len(arrivals) for total in sums(arrivals))
    assert inputs == pytest.approx(85, rel=0.03)
    assert outputs == pytest.approx(165, rel=0.03)
    assert max(max(a.num_prompt_tokens, a.num_output_tokens) for a in arrivals) < MAX_TOKENS
    assert len({arrival.adapter for arrival in arrivals}) == NUM_ADAPTERS


def test_the_overload_has_two_clients_at_even_paces():
    workload = make_workload("w5-overload")
    counts = collections.Counter(arrival.tenant for arrival in workload.arrivals)
    assert sorted(counts.values()) == [int(rate * 360) for rate in OVERLOAD]
    assert {(a.num_prompt_tokens, a.num_output_tokens) for a in workload.arrivals} == {(256, 256)}


def test_the_flooder_asks_for_a_hundred_times_what_another_does():
    counts = collections.Counter(arrival.tenant for arrival in make_workload("flood").arrivals)
    flood = counts.pop("flooder")
    assert flood / statistics.mean(counts.values()) == pytest.approx(100, rel=0.1)
    without = collections.Counter(arrival.tenant for arrival in make_workload("flood-without").arrivals)
    assert without == counts


def test_round_robin_comes_back_to_an_adapter_after_all_the_others():
    workload = make_workload("oversubscription-4x")
    adapters = [arrival.adapter for arrival in workload.arrivals]
    assert len(set(adapters)) == len(workload.ranks) == 128
    assert adapters[:128] == adapters[128:256]


@pytest.mark.parametrize("name", WORKLOAD_NAMES)
def test_every_workload_is_sound(name):
    workload = make_workload(name, 7)
    times = [arrival.time_ns for arrival in workload.arrivals]
    assert workload.name == name
    assert times == sorted(times)
    longest = max(a.num_prompt_tokens + a.num_output_tokens for a in workload.arrivals)
    assert longest <= workload.preset.max_context_tokens
    assert min(min(a.num_prompt_tokens, a.num_output_tokens) for a in workload.arrivals) >= 1
    assert {a.adapter for a in workload.arrivals} - {None} <= set(workload.ranks)


def test_an_unknown_workload_is_refused_by_name():
    with pytest.raises(ValueError, match="workload='w9' must be one of w1-slora"):
        make_workload("w9")
