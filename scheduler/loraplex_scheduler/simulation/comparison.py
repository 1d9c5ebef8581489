"""Runs of one workload under several policies, as a table."""

from collections.abc import Callable, Sequence
from typing import Final

from rich import box
from rich.table import Table

from loraplex_scheduler.simulation.metrics import RunMetrics


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.0f} ms"


COLUMNS: Final[tuple[tuple[str, Callable[[RunMetrics], str]], ...]] = (
    ("policy", lambda m: f"{m.policy} STARVED" if m.is_starved else m.policy),
    ("done", lambda m: f"{m.num_finished}/{m.num_requests}"),
    ("refused", lambda m: f"{m.num_rejected + m.num_failed}"),
    ("tok/s", lambda m: f"{m.window_tokens_per_s:.1f}"),
    ("req/s", lambda m: f"{m.requests_per_s:.2f}"),
    ("TTFT p50", lambda m: _ms(m.ttft_ms.p50)),
    ("TTFT p99", lambda m: _ms(m.ttft_ms.p99)),
    ("ITL p50", lambda m: _ms(m.itl_ms.p50)),
    ("ITL p99", lambda m: _ms(m.itl_ms.p99)),
    ("in SLO", lambda m: _share(m.attainment)),
    ("satisf.", lambda m: f"{m.satisfaction:.2f}"),
    ("Jain", lambda m: f"{m.jain_index:.3f}"),
    ("gap/VTC", lambda m: f"{m.max_service_gap / m.service_gap_bound:.2f}"),
    ("hits", lambda m: _share(m.adapter_hit_rate)),
    ("loads", lambda m: str(m.num_loads)),
    ("evict.", lambda m: str(m.num_evictions)),
    ("preempt.", lambda m: str(m.num_preemptions)),
)


def comparison(title: str, runs: Sequence[RunMetrics]) -> Table:
    """A row for each run."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, (heading, _) in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for run in runs:
        table.add_row(*(cell(run) for _, cell in COLUMNS))
    return table
