"""The Triton kernels equal their float64 references, by Triton's interpreter.

Whether Triton interprets is settled when it is first imported, so each suite has a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SUITES = Path(__file__).parent / "triton_suite"
_TIMEOUT_S = 280


@pytest.mark.slow
@pytest.mark.parametrize("suite", sorted(path.name for path in _SUITES.glob("*_suite.py")))
def test_triton_kernels_equal_their_references(suite: str) -> None:
    root = Path(__file__).resolve().parents[2]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        _SUITES / suite,
        "-o",
        f"python_files={suite}",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{root}:{root / 'kernels'}",
    }
    # No conftest from above: it is about the model, which these do not need.
    command += ["--confcutdir", _SUITES, "--tb=short"]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
