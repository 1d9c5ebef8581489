"""What a soak found, as a table for people and as JSON for the results folder."""

import dataclasses
import datetime
import itertools
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.faults.blow import BlowResult
from tests.faults.checker import Fault, Golden, Losses, PoisonRule, faults, is_poisoned
from tests.faults.history import History, Submission, Tokens
from tests.faults.service import SCHEDULER_FLAGS, WORKER_FLAGS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MAX_DETECTION_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of the checker, over all histories."""

    num_streams: int
    num_tokens: int
    num_resumed: int
    """Complete streams of which tokens were computed again after a loss."""
    num_recomputed_tokens: int
    num_poisoned: int
    """Ended with the error of a request under which too many workers were lost: allowed, and counted apart."""
    terminals: dict[str, int]
    """How many streams ended in each way."""
    faults: dict[str, int]
    """How many streams had each fault."""
    examples: tuple[str, ...]
    """The first two streams that had each set of faults."""
    gaps_s: tuple[float, ...]
    """Longest silence of each resumed stream between two of its frames."""

    def assert_clean(self) -> None:
        assert not self.faults, f"{self.faults}\n" + "\n".join(self.examples)


def judge(
    histories: Sequence[History],
    golden: Mapping[Submission, Golden],
    *,
    poison: PoisonRule | None = None,
    losses: Losses | None = None,
) -> Verdict:
    """Every history against the golden run of its submission."""
    count: Counter[str] = Counter()
    examples: list[str] = []
    kinds: Counter[frozenset[Fault]] = Counter()
    for number, history in enumerate(histories):
        found = faults(history, golden[history.submission], poison=poison, losses=losses)
        count.update(fault.name for fault in found)
        kinds[found] += 1
        if found and kinds[found] <= 2:
            names = sorted(fault.name for fault in found)
            difference = first_difference(history.token_ids, golden[history.submission].token_ids)
            examples.append(f"stream {number}: {names}, {difference}, {history.submission}, ended {history.terminal}")
    resumed = [history for history in histories if num_recomputed(history)]
    return Verdict(
        num_streams=len(histories),
        num_tokens=sum(len(history.token_ids) for history in histories),
        num_resumed=len(resumed),
        num_recomputed_tokens=sum(num_recomputed(history) for history in resumed),
        num_poisoned=sum(poison is not None and is_poisoned(history, poison) for history in histories),
        terminals=dict(Counter(terminal_name(history) for history in histories)),
        faults=dict(count),
        examples=tuple(examples),
        gaps_s=tuple(longest_gap_s(history) for history in resumed),
    )


def first_difference(seen: Sequence[int], expected: Sequence[int]) -> str:
    for index, (one, other) in enumerate(zip(seen, expected, strict=False)):
        if one != other:
            return f"token {index} is {one} and not {other}"
    return f"{len(seen)} of {len(expected)} tokens"


def terminal_name(history: History) -> str:
    end = history.terminal
    return "none" if end is None else " ".join(part for part in (end.reason, end.error_reason) if part)


def num_recomputed(history: History) -> int:
    end = history.terminal
    return end.num_recomputed_tokens if end is not None else 0


def longest_gap_s(history: History) -> float:
    times = [frame.at_ns for frame in history.frames if isinstance(frame, Tokens)]
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0) / 1e9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SoakReport:
    """One soak."""

    seed: int
    duration_s: float
    scheduler_flags: tuple[str, ...]
    worker_flags: tuple[str, ...]
    num_blows: dict[str, int]
    """By signal."""
    num_losses: int
    """That the scheduler wrote down. More than blows: a worker was taken for lost that nobody had hit."""
    num_sequences_hit: int
    """That the victims ran at the last look before each blow."""
    detection_s: dict[str, dict[str, float]]
    """From the signal until GetCluster did not count the worker any more: by signal, median and maximum."""
    return_s: dict[str, dict[str, float]]
    """From the signal until GetCluster counted it again. SIGSTOP: with the time for which it was left frozen."""
    gap_s: dict[str, float]
    """Longest silence in each resumed stream, torch's loading in a restarted worker beside it included."""
    verdict: Verdict
    blows: tuple[BlowResult, ...]
    exit_codes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of the processes that lived to the end."""

    @classmethod
    def of(
        cls, *, seed: int, verdict: Verdict, blows: Sequence[BlowResult], num_losses: int, duration_s: float
    ) -> Self:
        return cls(
            seed=seed,
            duration_s=round(duration_s, 1),
            scheduler_flags=SCHEDULER_FLAGS,
            worker_flags=WORKER_FLAGS,
            num_blows=dict(Counter(blow.signal for blow in blows)),
            num_losses=num_losses,
            num_sequences_hit=sum(blow.num_sequences for blow in blows),
            detection_s={kind: spread([blow.detection_s for blow in group]) for kind, group in by_signal(blows)},
            return_s={kind: spread([blow.return_s for blow in group]) for kind, group in by_signal(blows)},
            gap_s=spread(verdict.gaps_s),
            verdict=verdict,
            blows=tuple(blows),
        )

    @property
    def is_passed(self) -> bool:
        slowest = max(blow.detection_s for blow in self.blows)
        return not self.verdict.faults and slowest < MAX_DETECTION_S and not any(self.exit_codes.values())

    def table(self) -> str:
        verdict = self.verdict
        rows = [
            ("seed, minutes", f"{self.seed}, {self.duration_s / 60:.1f}"),
            ("blows", ", ".join(f"{number} {kind}" for kind, number in sorted(self.num_blows.items()))),
            ("sequences under the blows", str(self.num_sequences_hit)),
            ("losses that the scheduler saw", str(self.num_losses)),
            ("streams, tokens", f"{verdict.num_streams}, {verdict.num_tokens}"),
            ("streams resumed, tokens recomputed", f"{verdict.num_resumed}, {verdict.num_recomputed_tokens}"),
            ("streams given up as poison", str(verdict.num_poisoned)),
            *((f"ended {name}", str(number)) for name, number in sorted(verdict.terminals.items())),
            ("streams with a fault", str(verdict.faults or 0)),
            *((f"detection {kind}, s", figures(values)) for kind, values in sorted(self.detection_s.items())),
            *((f"back after {kind}, s", figures(values)) for kind, values in sorted(self.return_s.items())),
            ("longest silence of resumed streams, s", figures(self.gap_s)),
            ("exit codes", ", ".join(f"{name} {code}" for name, code in sorted(self.exit_codes.items()))),
            ("scheduler", " ".join(self.scheduler_flags)),
            ("passed", "yes" if self.is_passed else "NO"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *verdict.examples]) + "\n"

    def write(self) -> Path:
        """Into the results folder, under today's date."""
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        machine = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
        document = {"date": today, "machine": machine, "passed": self.is_passed, **dataclasses.asdict(self)}
        del document["verdict"]["gaps_s"]
        path = RESULTS / f"{today}-faults.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path


def by_signal(blows: Sequence[BlowResult]) -> Iterator[tuple[str, list[BlowResult]]]:
    for kind in sorted({blow.signal for blow in blows}):
        yield kind, [blow for blow in blows if blow.signal == kind]


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"median": 0.0, "max": 0.0}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def figures(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3f} (max {values['max']:.3f})"
