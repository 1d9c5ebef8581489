"""The command: tables, goals, files, and refusals that say what to do."""

import dataclasses
import json
import subprocess
import sys

import pytest

from loraplex_scheduler.simulation import plot
from loraplex_scheduler.simulation.__main__ import main
from loraplex_scheduler.simulation.fleet import Fleet, RunFailed
from loraplex_scheduler.simulation.goals import judge
from loraplex_scheduler.simulation.runner import simulate
from loraplex_scheduler.simulation.workloads.catalogue import make_workload

WORKLOAD = "scale-cpu-1"


def test_a_run_leaves_its_numbers_and_a_picture(tmp_path, capsys):
    assert main([WORKLOAD, "--policy", "loraplex", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / f"{WORKLOAD}.loraplex.json").read_text())
    assert written["num_finished"] == written["num_requests"] == 411
    picture = (tmp_path / f"{WORKLOAD}.loraplex.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    table = capsys.readouterr().out
    assert "411/411" in table
    assert "TTFT" in table


def test_the_page_holds_the_rows_of_the_runs(tmp_path):
    page = tmp_path / "results.md"
    assert main([WORKLOAD, "--policy", "loraplex", "--page", str(page)]) == 0
    text = page.read_text()
    assert f"## {WORKLOAD}" in text
    assert "| loraplex | 411/411 | 0 |" in text


def test_children_answer_what_a_run_here_gives(capsys):
    runs = {}
    Fleet([(WORKLOAD, "loraplex"), (WORKLOAD, "fcfs")], seed=42, num_processes=2).run(
        lambda metrics: runs.update({metrics.policy: metrics})
    )
    assert set(runs) == {"loraplex", "fcfs"}
    assert runs["loraplex"] == simulate(make_workload(WORKLOAD), "loraplex", seed=42)[1]


def test_a_run_that_breaks_off_is_named():
    with pytest.raises(RunFailed, match="scale-cpu-1 under no-such-policy"):
        Fleet([(WORKLOAD, "no-such-policy")], seed=42, num_processes=1).run(lambda metrics: None)


def test_unknown_names_are_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["w9"])
    assert refusal.value.code == 2
    assert "no workload w9; there are w1-slora" in capsys.readouterr().err


def test_without_matplotlib_a_plot_is_refused_with_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([WORKLOAD, "--policy", "fcfs", "--out", str(tmp_path)]) == 1
    assert "pip install matplotlib, or give --no-plot" in capsys.readouterr().err
    assert main([WORKLOAD, "--policy", "fcfs", "--out", str(tmp_path), "--no-plot"]) == 0
    with pytest.raises(plot.PlotUnavailable):
        plot.check_plotting()


def test_matplotlib_is_loaded_only_for_a_plot():
    code = "import sys, loraplex_scheduler.simulation.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_loraplex_command_hands_over_its_flags():
    command = [sys.executable, "-m", "loraplex_cli.main", "simulate", "--list"]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "w1-slora" in listing
    assert "flood" in listing


def test_a_goal_is_judged_from_the_runs_it_needs():
    assert judge({}) == []
    runs = {(name, "loraplex"): simulate(make_workload(name), "loraplex", seed=42)[1] for name in _SCALE}
    (verdict,) = judge(runs)
    assert verdict.value == pytest.approx(
        runs["scale-cpu-1024", "loraplex"].window_tokens_per_s / runs["scale-cpu-1", "loraplex"].window_tokens_per_s
    )
    assert verdict.line().startswith("pass  1,024 adapters over 1")
    runs["scale-cpu-1", "loraplex"] = dataclasses.replace(runs["scale-cpu-1", "loraplex"], is_starved=True)
    (verdict,) = judge(runs)
    assert verdict.line().startswith("MISS")
    assert verdict.line().endswith("STARVED")


_SCALE = ("scale-cpu-1", "scale-cpu-1024")
