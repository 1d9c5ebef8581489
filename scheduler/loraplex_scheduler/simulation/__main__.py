"""``loraplex simulate``, or ``python -m loraplex_scheduler.simulation``: the scheduler's core in virtual time."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loraplex_scheduler.core.policies import POLICY_NAMES
from loraplex_scheduler.simulation.comparison import comparison
from loraplex_scheduler.simulation.fleet import Fleet, RunFailed, answer_runs
from loraplex_scheduler.simulation.goals import judge
from loraplex_scheduler.simulation.metrics import RunMetrics
from loraplex_scheduler.simulation.plot import PlotUnavailable, check_plotting, write_plot
from loraplex_scheduler.simulation.presets import PRESETS
from loraplex_scheduler.simulation.report import to_json
from loraplex_scheduler.simulation.results_page import results_page
from loraplex_scheduler.simulation.runner import simulate
from loraplex_scheduler.simulation.workload import Workload
from loraplex_scheduler.simulation.workloads.catalogue import DEFAULT_SEED, WORKLOAD_NAMES, make_workload

TABLE_WIDTH = 172
"""Where standard output is no terminal."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="loraplex simulate",
        description="Drives the scheduler's core with virtual workers and clients, and compares policies.",
        epilog="Without a workload: every workload under every policy, and whether the goals are met.",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="names as --list shows them")
    parser.add_argument("--all", action="store_true", help="every workload")
    parser.add_argument("--list", action="store_true", help="show the workloads and end")
    parser.add_argument("--policy", action="append", choices=POLICY_NAMES, help="may be repeated; all by default")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the workloads (default %(default)s)")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="another machine than the workload's own")
    parser.add_argument("--workers", type=int, metavar="N", help="another number of workers than the workload's own")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a JSON file and a PNG for each run go there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="tables and verdicts as Markdown go there")
    parser.add_argument("--no-plot", action="store_true", help="with --out: JSON alone")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="side by side (default %(default)s)")
    parser.add_argument("--answer-runs", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    unknown = set(given.workloads) - set(WORKLOAD_NAMES)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOAD_NAMES)}")
    if (given.workers is not None and given.workers < 1) or given.processes < 1:
        parser.error("--workers and --processes must be at least 1")
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    if given.answer_runs:
        answer_runs(sys.stdin, sys.stdout)
        return 0
    if given.list:
        for name in WORKLOAD_NAMES:
            console.print(f"{name:32}{make_workload(name).title}", highlight=False)
        return 0
    names = list(WORKLOAD_NAMES) if given.all or not given.workloads else given.workloads
    policies = given.policy or list(POLICY_NAMES)
    try:
        runs = _run(given, names, policies)
    except (PlotUnavailable, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    titles = {name: make_workload(name, given.seed).title for name in names}
    _show(console, titles, policies, runs)
    if given.page is not None:
        given.page.write_text(results_page(titles, policies, runs))
    return 0


def _run(given: argparse.Namespace, names: list[str], policies: list[str]) -> dict[tuple[str, str], RunMetrics]:
    """Side by side, unless runs are wanted in full or are changed."""
    pairs = [(name, policy) for name in names for policy in policies]
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        if not given.no_plot:
            check_plotting()
    runs: dict[tuple[str, str], RunMetrics] = {}
    with _progress() as progress:
        bar = progress.add_task("simulating", total=len(pairs))

        def done(metrics: RunMetrics) -> None:
            runs[metrics.workload, metrics.policy] = metrics
            progress.update(bar, advance=1, description=f"{metrics.workload}, {metrics.policy}")

        if given.out is None and given.preset is None and given.workers is None and len(pairs) > 1:
            Fleet(pairs, seed=given.seed, num_processes=given.processes).run(done)
        else:
            for name, policy in pairs:
                done(_run_here(given, name, policy, progress))
    return runs


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _run_here(given: argparse.Namespace, name: str, policy: str, progress: Progress) -> RunMetrics:
    workload = _changed(make_workload(name, given.seed), given)
    bar = progress.add_task(f"{name}, {policy}", total=1.0)
    simulation, metrics = simulate(
        workload, policy, seed=given.seed, progress=lambda part: progress.update(bar, completed=part)
    )
    progress.remove_task(bar)
    if given.out is not None:
        stem = given.out / f"{name}.{policy}"
        stem.with_name(stem.name + ".json").write_text(to_json(metrics) + "\n")
        if not given.no_plot:
            write_plot(simulation, metrics, stem.with_name(stem.name + ".png"))
    return metrics


def _changed(workload: Workload, given: argparse.Namespace) -> Workload:
    if given.preset is not None:
        workload = dataclasses.replace(workload, preset=PRESETS[given.preset])
    if given.workers is not None:
        workload = dataclasses.replace(workload, num_workers=given.workers)
    return workload


def _show(
    console: Console, titles: dict[str, str], policies: list[str], runs: dict[tuple[str, str], RunMetrics]
) -> None:
    for name, title in titles.items():
        console.print(comparison(f"{name}: {title}", [runs[name, policy] for policy in policies]))
    verdicts = judge(runs)
    if verdicts:
        console.print("[bold]Goals of the default policy[/bold]")
    for verdict in verdicts:
        console.print(verdict.line(), style="green" if verdict.is_met else "red", highlight=False)


if __name__ == "__main__":
    started = time.monotonic()
    code = main(sys.argv[1:])
    if not {"--answer-runs", "--list"} & set(sys.argv[1:]):
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
