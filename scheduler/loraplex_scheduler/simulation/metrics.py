"""What a run is judged by, as plain numbers: the same run gives the same JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from loraplex_scheduler.simulation.fairness import jain_of_shares, max_service_gap, service_gap_bound
from loraplex_scheduler.simulation.simulation import Simulation
from loraplex_scheduler.simulation.virtual_clients import ClientRequest, Outcome
from loraplex_scheduler.simulation.workload import SECOND_NS, Workload

Floats = npt.NDArray[np.float64]
MS: Final = 1e6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Milliseconds; None without a single value."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """Latencies, attainment and satisfaction are those of the watched tenants; all the rest is everybody's."""

    workload: str
    policy: str
    seed: int
    num_requests: int
    num_finished: int
    num_rejected: int
    num_failed: int
    num_unfinished: int
    is_starved: bool
    """Whether it came to a stop with requests waiting, so that they had to be cancelled."""
    error_reasons: dict[str, int]
    virtual_s: float
    requests_per_s: float
    """Finished requests over the time from the first arrival to the last finish, as S-LoRA's."""
    tokens_per_s: float
    """Output tokens over the same time."""
    window_tokens_per_s: float
    """Output tokens over the time in which requests came; over all of it where they came at once."""
    ttft_ms: Percentiles
    itl_ms: Percentiles
    attainment: float
    """Share of the requests whose first token came within the SLO; what was refused or aborted counts as missed."""
    satisfaction: float
    """Mean of 1 - (first token / SLO)^2 within the SLO, 0 past it."""
    jain_index: float
    """Over tenants, of the service in the window over the max-min fair share of it."""
    max_service_gap: float
    """Of two tenants while both were backlogged, in VTC's unit."""
    service_gap_bound: float
    """VTC's: 2 max(w_p L_in, w_q M), M = the tokens of a worker's pool."""
    adapter_hit_rate: float | None
    """Requests whose adapter was on a worker when they came."""
    num_loads: int
    num_evictions: int
    num_preemptions: int
    num_recomputed_tokens: int
    mean_busy: float
    """Part of the time that a worker stepped."""
    num_steps: int
    num_turns: int


def measure(simulation: Simulation, *, policy: str, seed: int) -> RunMetrics:
    workload, requests = simulation.workload, simulation.clients.requests
    watched = [request for request in requests if _is_watched(workload, request)]
    ttft_ns = np.array([r.first_token_ns - r.arrival.time_ns for r in watched if r.first_token_ns is not None], float)
    span_s = _span_ns(requests) / SECOND_NS
    counters = [worker.counters for worker in simulation.statistics().workers]
    gap, bound, jain = _fairness(simulation)
    return RunMetrics(
        workload=workload.name,
        policy=policy,
        seed=seed,
        num_requests=len(requests),
        num_finished=_count(requests, Outcome.FINISHED),
        num_rejected=_count(requests, Outcome.REJECTED),
        num_failed=_count(requests, Outcome.FAILED),
        num_unfinished=_count(requests, Outcome.UNFINISHED),
        is_starved=simulation.is_starved,
        error_reasons=_reasons(requests),
        virtual_s=round(simulation.now_ns / SECOND_NS, 6),
        requests_per_s=_rounded(_count(requests, Outcome.FINISHED) / span_s),
        tokens_per_s=_rounded(simulation.num_tokens / span_s),
        window_tokens_per_s=_rounded(_window_rate(simulation, span_s)),
        ttft_ms=_percentiles(ttft_ns / MS),
        itl_ms=_percentiles(np.array(simulation.clients.inter_token_ns, float) / MS),
        attainment=_rounded(float((ttft_ns < workload.slo_ns).sum()) / len(watched)),
        satisfaction=_rounded(float(np.maximum(0, 1 - (ttft_ns / workload.slo_ns) ** 2).sum()) / len(watched)),
        jain_index=_rounded(jain),
        max_service_gap=gap,
        service_gap_bound=bound,
        adapter_hit_rate=_hit_rate(simulation),
        num_loads=sum(c.num_loads for c in counters),
        num_evictions=sum(c.num_evictions for c in counters),
        num_preemptions=sum(c.num_preemptions for c in counters),
        num_recomputed_tokens=simulation.clients.num_recomputed_tokens,
        mean_busy=_mean_busy(simulation),
        num_steps=sum(worker.num_steps for worker in simulation.workers.values()),
        num_turns=simulation.num_turns,
    )


def _is_watched(workload: Workload, request: ClientRequest) -> bool:
    return workload.watched_tenants is None or request.arrival.tenant in workload.watched_tenants


def _count(requests: Sequence[ClientRequest], outcome: Outcome) -> int:
    return sum(request.outcome is outcome for request in requests)


def _reasons(requests: Sequence[ClientRequest]) -> dict[str, int]:
    reasons = sorted(request.reason for request in requests if request.reason)
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def _span_ns(requests: Sequence[ClientRequest]) -> int:
    ends = [request.end_ns for request in requests if request.outcome in (Outcome.FINISHED, Outcome.UNFINISHED)]
    return max(1, max((end for end in ends if end is not None), default=1) - requests[0].arrival.time_ns)


def _hit_rate(simulation: Simulation) -> float | None:
    if not simulation.num_adapter_requests:
        return None
    return _rounded(simulation.num_adapter_hits / simulation.num_adapter_requests)


def _mean_busy(simulation: Simulation) -> float:
    busy_ns = sum(worker.busy_ns for worker in simulation.workers.values())
    return _rounded(busy_ns / max(1, simulation.now_ns) / len(simulation.workers))


def _window_rate(simulation: Simulation, span_s: float) -> float:
    window_s = simulation.workload.window_ns / SECOND_NS
    return simulation.timeline.window_tokens / window_s if window_s >= 1 else simulation.num_tokens / span_s


def _fairness(simulation: Simulation) -> tuple[float, float, float]:
    """Largest gap, its bound, Jain's index."""
    meter, preset = simulation.meter, simulation.workload.preset
    services = meter.services()
    gap = max_service_gap(services, meter.is_backlogged())
    longest = max(arrival.num_prompt_tokens for arrival in simulation.workload.arrivals)
    bound = service_gap_bound(max_prompt_tokens=longest, max_batch_tokens=preset.num_pages * preset.page_size)
    return gap, bound, jain_of_shares(services[-1], meter.demand())


def _percentiles(values: Floats) -> Percentiles:
    if not len(values):
        return Percentiles(mean=None, p50=None, p90=None, p99=None)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Percentiles(mean=_rounded(float(values.mean())), p50=_rounded(p50), p90=_rounded(p90), p99=_rounded(p99))


def _rounded(value: float) -> float:
    return round(float(value), 4)
