"""One picture of a run: what clients saw above, what the machine did below. Needs matplotlib."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from loraplex_scheduler.simulation.metrics import RunMetrics
from loraplex_scheduler.simulation.simulation import Simulation
from loraplex_scheduler.simulation.virtual_clients import Outcome
from loraplex_scheduler.simulation.workload import SECOND_NS

BLUE: Final = "#3b6fb6"
ORANGE: Final = "#e08a3c"
GREEN: Final = "#4c9f70"
RED: Final = "#c8553d"
GREY: Final = "#8a8f98"
_STYLE: Final[Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "#fafbfc",
    "axes.edgecolor": "#c9ced6",
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e9ee",
    "font.size": 9.5,
    "legend.frameon": False,
}


class PlotUnavailable(Exception):
    """matplotlib is not installed."""


def check_plotting() -> None:
    """Raises:
    PlotUnavailable: there is no matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotUnavailable(
            "plots need matplotlib, which is not installed: pip install matplotlib, or give --no-plot"
        ) from None


def write_plot(simulation: Simulation, metrics: RunMetrics, path: Path) -> None:
    """A PNG. Raises PlotUnavailable as ``check_plotting``."""
    check_plotting()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 7.4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        figure.suptitle(f"{simulation.workload.title}   |   policy {metrics.policy}", x=0.01, ha="left", size=13)
        _first_tokens(axes[0][0], simulation)
        _distributions(axes[0][1], simulation, metrics)
        _load(axes[1][0], simulation)
        _service(axes[1][1], simulation, metrics)
        figure.savefig(path, format="png", metadata={"Software": None})


def _first_tokens(ax: Any, simulation: Simulation) -> None:
    """Each request at its arrival: how long to the first token, or that it never came."""
    slo_s = simulation.workload.slo_ns / SECOND_NS
    points: dict[str, list[tuple[float, float]]] = {"in the SLO": [], "past the SLO": [], "refused or aborted": []}
    for request in simulation.clients.requests:
        arrived_s = request.arrival.time_ns / SECOND_NS
        if request.first_token_ns is not None:
            wait_s = (request.first_token_ns - request.arrival.time_ns) / SECOND_NS
            points["in the SLO" if wait_s < slo_s else "past the SLO"].append((arrived_s, wait_s))
        elif request.outcome in (Outcome.REJECTED, Outcome.FAILED):
            points["refused or aborted"].append((arrived_s, slo_s))
    styles = {"in the SLO": (GREEN, "o"), "past the SLO": (RED, "o"), "refused or aborted": (GREY, "x")}
    for label, pairs in points.items():
        color, marker = styles[label]
        if pairs:
            x, y = zip(*pairs, strict=True)
            ax.scatter(x, y, s=11, color=color, marker=marker, alpha=0.65, linewidths=0.8, label=f"{label}: {len(x)}")
    ax.axhline(slo_s, color=GREY, linestyle="--", linewidth=1)
    ax.set_yscale("log")
    ax.set(title="First token of each request", xlabel="arrival, s", ylabel="time to first token, s")
    ax.legend(loc="best")


def _distributions(ax: Any, simulation: Simulation, metrics: RunMetrics) -> None:
    ttft_s = [
        (r.first_token_ns - r.arrival.time_ns) / SECOND_NS
        for r in simulation.clients.requests
        if r.first_token_ns is not None
    ]
    itl_s = np.asarray(simulation.clients.inter_token_ns, float) / SECOND_NS
    for values, color, label in (
        (np.asarray(ttft_s), BLUE, f"first token, P99 {_seconds(metrics.ttft_ms.p99)}"),
        (itl_s[itl_s > 0], ORANGE, f"between tokens, P99 {_seconds(metrics.itl_ms.p99)}"),
    ):
        if len(values):
            shares = np.linspace(0, 100, 400)
            ax.plot(np.percentile(values, shares), shares, color=color, linewidth=2, label=label)
    ax.set_xscale("log")
    ax.set(title="Latencies", xlabel="s", ylabel="% of requests, of tokens", ylim=(0, 101))
    ax.legend(loc="lower right")


def _load(ax: Any, simulation: Simulation) -> None:
    timeline = simulation.timeline
    time_s = np.asarray(timeline.time_ns) / SECOND_NS
    ax.fill_between(time_s, timeline.num_waiting, color=ORANGE, alpha=0.35, linewidth=0, label="waiting")
    ax.plot(time_s, timeline.num_running, color=BLUE, linewidth=1.6, label="running")
    ax.set(title="Requests and throughput", xlabel="s", ylabel="requests", ylim=(0, None))
    tokens = ax.twinx()
    tokens.grid(visible=False)
    if len(time_s) > 8:
        width = max(1, len(time_s) // 60)
        counts = np.asarray(timeline.num_tokens, float)
        rate = (counts[width:] - counts[:-width]) / (time_s[width:] - time_s[:-width])
        tokens.plot(time_s[width:], rate, color=GREEN, linewidth=1.2, alpha=0.9, label="output tokens/s (right)")
    tokens.set_ylim(0, None)
    handles = [*ax.get_legend_handles_labels()[0], *tokens.get_legend_handles_labels()[0]]
    ax.legend(handles=handles, loc="best")


def _service(ax: Any, simulation: Simulation, metrics: RunMetrics) -> None:
    services = simulation.meter.services()
    time_s = np.linspace(0, simulation.workload.window_ns / SECOND_NS, len(services))
    num_tenants = services.shape[1]
    for index, tenant in enumerate(simulation.meter.tenants):
        label = tenant if num_tenants <= 10 else None
        ax.plot(time_s, services[:, index] / 1000, linewidth=1.6, alpha=0.9, label=label)
    ax.set(title="Service of each tenant (prompt + 2 x output, thousands)", xlabel="s", ylim=(0, None))
    hits = "-" if metrics.adapter_hit_rate is None else f"{metrics.adapter_hit_rate:.1%}"
    facts = (
        f"{metrics.window_tokens_per_s:.0f} tok/s   in SLO {metrics.attainment:.1%}   Jain {metrics.jain_index:.3f}\n"
        f"gap {metrics.max_service_gap / metrics.service_gap_bound:.2f} of VTC's bound   hits {hits}\n"
        f"{metrics.num_loads} loads   {metrics.num_evictions} evictions   {metrics.num_preemptions} preemptions"
    )
    ax.text(0.98, 0.03, facts, transform=ax.transAxes, ha="right", va="bottom", color="#444", linespacing=1.5)
    if 1 < num_tenants <= 10:
        ax.legend(loc="upper left", fontsize=8)


def _seconds(value_ms: float | None) -> str:
    return "-" if value_ms is None else f"{value_ms / 1000:.3g} s"
