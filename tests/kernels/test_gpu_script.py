"""The script for the day when a GPU is at hand: its plumbing is proven without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"copy", "matmul", "step", "G1", "G2", "G3", "G4", "G6", "G7", "G8"}


@pytest.mark.slow
def test_the_script_measures_everything_it_names(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = [str(ROOT / "benchmarks" / "gpu" / "run.sh"), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert {row["metric"] for row in result["rows"]} == METRICS
    assert all(row["measured"] > 0 for row in result["rows"] if row["metric"] != "G6")
    assert "| goal | what | wanted | measured |" in done.stdout
