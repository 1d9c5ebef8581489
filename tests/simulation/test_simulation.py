"""A run is deterministic, loses nothing, and takes exactly the time that the cost model says."""

import dataclasses
import itertools

import pytest

from loraplex_scheduler.core.policies import POLICY_NAMES, make_policy
from loraplex_scheduler.simulation.cost_model import StepLoad
from loraplex_scheduler.simulation.metrics import measure
from loraplex_scheduler.simulation.presets import CPU, H100
from loraplex_scheduler.simulation.report import from_json, to_json
from loraplex_scheduler.simulation.runner import core_config, simulate
from loraplex_scheduler.simulation.simulation import PATIENCE_NS, Simulation
from loraplex_scheduler.simulation.virtual_clients import Outcome
from loraplex_scheduler.simulation.workload import SECOND_NS
from tests.simulation.small_workload import one_request, small_workload


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_request_ends_once_with_the_tokens_it_asked_for(policy):
    simulation, metrics = simulate(small_workload(), policy, seed=5, check_every=5)
    for request in simulation.clients.requests:
        assert request.outcome is Outcome.FINISHED
        assert request.num_output == request.arrival.num_output_tokens
        assert request.first_token_ns is not None
        assert request.end_ns is not None
        assert request.arrival.time_ns < request.first_token_ns <= request.end_ns
    assert metrics.num_finished == metrics.num_requests == 80
    assert simulation.num_tokens == sum(a.num_output_tokens for a in simulation.workload.arrivals)
    assert metrics.num_loads >= len({(a.tenant, a.adapter) for a in simulation.workload.arrivals if a.adapter})
    assert metrics.num_evictions > 0
    assert simulation.core.is_idle


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_nothing_is_left_of_what_is_cut_off_at_the_horizon(policy):
    workload = small_workload(horizon_ns=12 * SECOND_NS, num_workers=2)
    workload = dataclasses.replace(workload, arrivals=tuple(a for a in workload.arrivals if a.time_ns < 12 * SECOND_NS))
    simulation, metrics = simulate(workload, policy, seed=5, check_every=5)
    ended = metrics.num_finished + metrics.num_unfinished + metrics.num_failed + metrics.num_rejected
    assert ended == metrics.num_requests
    assert metrics.num_unfinished > 0
    assert all(worker.num_running_sequences == 0 for worker in simulation.statistics().workers)
    assert simulation.core.is_idle


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_requests_with_a_deadline_end_whether_or_not_it_can_be_met(policy):
    workload = small_workload(sends_deadline=True, slo_ns=SECOND_NS)
    simulation, metrics = simulate(workload, policy, seed=5, check_every=5)
    assert metrics.num_finished + metrics.num_failed + metrics.num_rejected == metrics.num_requests
    assert metrics.num_finished > 0
    assert sum(metrics.error_reasons.values()) == metrics.num_failed + metrics.num_rejected
    assert simulation.core.is_idle


def test_two_runs_give_the_same_json():
    one, other = (to_json(simulate(small_workload(), "loraplex", seed=5)[1]) for _ in range(2))
    assert one == other
    assert to_json(from_json(one)) == one


def test_another_workload_gives_another_json():
    arrivals = small_workload().arrivals
    one, other = (
        to_json(simulate(small_workload(arrivals=part), "loraplex", seed=5)[1]) for part in (arrivals, arrivals[:-1])
    )
    assert one != other


def decode_load(context: int, rank: int, num_bytes: int) -> StepLoad:
    return StepLoad(1, 0, bool(rank), rank, context, num_bytes)


@pytest.mark.parametrize("preset", [CPU, H100], ids=lambda preset: preset.name)
def test_an_undisturbed_request_takes_the_time_of_the_formula(preset):
    """600 prompt tokens in two chunks of at most 512, then 100 steps of one row; commands and reports cross a link."""
    preset = dataclasses.replace(preset, max_step_tokens=512)
    workload = one_request(num_prompt=600, num_output=101, rank=None, preset=preset)
    simulation, metrics = simulate(workload, "loraplex", seed=1)
    chunks = [StepLoad(0, 512, 0, 0, 512, 0), StepLoad(0, 88, 0, 0, 600, 0)]
    ttft_ns = 2 * preset.link_ns + sum(preset.step.step_ns(load) for load in chunks)
    gaps_ns = [preset.step.step_ns(decode_load(context, 0, 0)) for context in range(601, 701)]
    assert_times(simulation, metrics, ttft_ns, gaps_ns)


@pytest.mark.parametrize("preset", [CPU, H100], ids=lambda preset: preset.name)
def test_a_cold_adapter_costs_its_load_and_two_links_more(preset):
    workload = one_request(num_prompt=40, num_output=5, rank=16, preset=preset)
    simulation, metrics = simulate(workload, "loraplex", seed=1)
    num_bytes = preset.adapter_bytes(16)
    prefill = StepLoad(0, 40, 40, 40 * 16, 40, num_bytes)
    ttft_ns = 4 * preset.link_ns + preset.load.load_ns(num_bytes) + preset.step.step_ns(prefill)
    gaps_ns = [preset.step.step_ns(decode_load(context, 16, num_bytes)) for context in range(41, 45)]
    assert_times(simulation, metrics, ttft_ns, gaps_ns)


def assert_times(simulation, metrics, ttft_ns, gaps_ns):
    (request,) = simulation.clients.requests
    assert request.first_token_ns - request.arrival.time_ns == ttft_ns
    assert list(simulation.clients.inter_token_ns) == gaps_ns
    ends_ns = list(itertools.accumulate(gaps_ns, initial=request.first_token_ns))
    assert request.end_ns == ends_ns[-1]
    assert metrics.ttft_ms.p50 == pytest.approx(ttft_ns / 1e6, abs=1e-3)


def test_adapters_that_do_not_fit_at_a_time_do_not_cost_throughput():
    """A short form of the goal for oversubscription; the whole of it is a run of the command."""
    arrivals = small_workload().arrivals
    few = tuple(dataclasses.replace(a, tenant="t", adapter=f"a000{i % 3}") for i, a in enumerate(arrivals))
    many = tuple(dataclasses.replace(a, tenant="t", adapter=f"a{i % 12:04d}") for i, a in enumerate(arrivals))
    ranks = {f"a{i:04d}": 16 for i in range(12)}
    runs = [simulate(small_workload(arrivals=part, ranks=ranks), "loraplex", seed=5)[1] for part in (few, many)]
    assert runs[1].tokens_per_s >= 0.9 * runs[0].tokens_per_s
    assert runs[1].num_loads > runs[0].num_loads


def test_a_run_that_comes_to_a_stop_is_given_up_and_says_so(monkeypatch):
    """A worker that hears nothing stands for a policy under which somebody waits for ever."""
    workload = one_request(num_prompt=8, num_output=2, rank=None)
    config = core_config(workload, "loraplex")
    simulation = Simulation(workload, config, make_policy("loraplex", config))
    for worker in simulation.workers.values():
        monkeypatch.setattr(worker, "receive", lambda frame: None)
    simulation.run()
    metrics = measure(simulation, policy="loraplex", seed=1)
    assert metrics.is_starved
    assert (metrics.num_finished, metrics.num_unfinished) == (0, 1)
    assert simulation.now_ns < 2 * PATIENCE_NS


def test_an_undisturbed_run_is_not_given_up():
    assert not simulate(small_workload(), "loraplex", seed=5)[1].is_starved
