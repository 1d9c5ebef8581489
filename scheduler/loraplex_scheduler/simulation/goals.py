"""What the default policy must reach, and whether it does: every line comes from the runs themselves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from loraplex_scheduler.simulation.metrics import RunMetrics

Runs: TypeAlias = Mapping[tuple[str, str], RunMetrics]
"""By workload and policy."""
Metric: TypeAlias = Callable[[RunMetrics], float]
OURS: Final = "loraplex"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure from some runs against a bound."""

    text: str
    needs: tuple[tuple[str, str], ...]
    value: Callable[[Runs], float]
    at_least: float | None = None
    at_most: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A goal and the figure that was measured."""

    goal: Goal
    value: float
    has_starved_run: bool
    """A comparison with a run that came to a stop proves nothing: the goal counts as missed."""

    @property
    def is_met(self) -> bool:
        goal = self.goal
        is_high_enough = goal.at_least is None or self.value >= goal.at_least
        is_low_enough = goal.at_most is None or self.value <= goal.at_most
        return is_high_enough and is_low_enough and not self.has_starved_run

    def line(self) -> str:
        goal = self.goal
        bound = f">= {goal.at_least:g}" if goal.at_least is not None else f"<= {goal.at_most:g}"
        note = ", but a run that it needs STARVED" if self.has_starved_run else ""
        return f"{'pass' if self.is_met else 'MISS'}  {goal.text}: {self.value:.3f} (goal {bound}){note}"


def judge(runs: Runs) -> list[Verdict]:
    """Verdicts on the goals whose runs are all there."""
    return [
        Verdict(
            goal=goal,
            value=goal.value(runs),
            has_starved_run=any(runs[needed].is_starved for needed in goal.needs),
        )
        for goal in GOALS
        if all(needed in runs for needed in goal.needs)
    ]


def _ratio(metric: Metric, one: tuple[str, str], other: tuple[str, str]) -> Callable[[Runs], float]:
    def value(runs: Runs) -> float:
        divisor = metric(runs[other])
        return metric(runs[one]) / divisor if divisor else float("inf")

    return value


def _throughput(run: RunMetrics) -> float:
    return run.window_tokens_per_s


def _p99_ttft(run: RunMetrics) -> float:
    return run.ttft_ms.p99 or 0.0


def _attainment(run: RunMetrics) -> float:
    return run.attainment


def _ratio_goal(
    text: str,
    metric: Metric,
    one: tuple[str, str],
    other: tuple[str, str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Goal:
    return Goal(text=text, needs=(one, other), value=_ratio(metric, one, other), at_least=at_least, at_most=at_most)


def _goals() -> tuple[Goal, ...]:
    over = "oversubscription-{}x"
    four, one = (over.format(4), OURS), (over.format(1), OURS)
    four_full, one_full = (f"{four[0]}-saturated", OURS), (f"{one[0]}-saturated", OURS)
    abort = ("w1-abort", OURS)
    return (
        _ratio_goal("4x slots over 1x, throughput, saturated", _throughput, four_full, one_full, at_least=0.9),
        _ratio_goal("4x slots over 1x, throughput, 70 % load", _throughput, four, one, at_least=0.9),
        _ratio_goal("4x slots over 1x, P99 TTFT, 70 % load", _p99_ttft, four, one, at_most=1.5),
        _ratio_goal(
            "1,024 adapters over 1, throughput, P2 on CPU",
            _throughput,
            ("scale-cpu-1024", OURS),
            ("scale-cpu-1", OURS),
            at_least=0.97,
        ),
        _ratio_goal(
            "1,000 adapters over 1, throughput, H100",
            _throughput,
            ("scale-h100-1000", OURS),
            ("scale-h100-1", OURS),
            at_least=0.97,
        ),
        _ratio_goal(
            "abort experiment, attainment over that of fcfs", _attainment, abort, ("w1-abort", "fcfs"), at_least=5.0
        ),
        Goal(
            text="abort experiment, attainment",
            needs=(abort,),
            value=lambda runs: runs[abort].attainment,
            at_least=0.65,
        ),
        _ratio_goal(
            "flood 100x, the others' P99 TTFT over that without it",
            _p99_ttft,
            ("flood", OURS),
            ("flood-without", OURS),
            at_most=1.25,
        ),
        _ratio_goal(
            "VTC overload, throughput over that of fcfs",
            _throughput,
            ("w5-overload", OURS),
            ("w5-overload", "fcfs"),
            at_least=0.99,
        ),
        Goal(
            text="VTC overload, largest service gap over VTC's bound",
            needs=(("w5-overload", OURS),),
            value=lambda runs: _gap(runs["w5-overload", OURS]),
            at_most=0.5,
        ),
    )


def _gap(run: RunMetrics) -> float:
    return run.max_service_gap / run.service_gap_bound


GOALS: Final = _goals()
