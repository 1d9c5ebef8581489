"""All runs and verdicts as a page of Markdown, so that the documentation never holds a figure that nobody measured."""

from collections.abc import Mapping, Sequence

from loraplex_scheduler.simulation.comparison import COLUMNS
from loraplex_scheduler.simulation.goals import judge
from loraplex_scheduler.simulation.metrics import RunMetrics


def results_page(titles: Mapping[str, str], policies: Sequence[str], runs: Mapping[tuple[str, str], RunMetrics]) -> str:
    """Args:
    titles: of each workload, in the order of the page.
    """
    seeds = sorted({run.seed for run in runs.values()})
    parts = [
        "# Results of the simulator",
        f"Written by `loraplex simulate --page`, seed {', '.join(map(str, seeds))}. "
        "What the columns mean, and the machines: [simulation.md](simulation.md).",
    ]
    verdicts = judge(runs)
    if verdicts:
        parts += ["## Goals of the default policy", "\n".join(f"- {verdict.line()}" for verdict in verdicts)]
    for name, title in titles.items():
        parts += [f"## {name}", title + ".", _table([runs[name, policy] for policy in policies])]
    return "\n\n".join(parts) + "\n"


def _table(runs: Sequence[RunMetrics]) -> str:
    rows = [[heading for heading, _ in COLUMNS], ["---", *["---:"] * (len(COLUMNS) - 1)]]
    rows += [[cell(run) for _, cell in COLUMNS] for run in runs]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
