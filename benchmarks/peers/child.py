"""One engine in a process of its own, asked for runs one at a time."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class Child:
    """Idle between runs, so that engines can take turns on the same cores."""

    def __init__(self, popen: "subprocess.Popen[str]", log: Path) -> None:
        self._popen = popen
        self._log = log
        self.ready_s: float = self._read()["ready"]

    def run(self, name: str) -> tuple[float, list[list[int]]]:
        """Seconds and output tokens of the job's run of this name."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({"run": name}) + "\n")
        self._popen.stdin.flush()
        answer = self._read()
        return answer["seconds"], answer["token_ids"]

    def _read(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._popen.args!r} ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def child(module: str, python: Path, job: dict[str, Any], folder: Path, *, timeout_s: float = 60) -> Iterator[Child]:
    """A running child; it is gone when this ends."""
    folder.mkdir(parents=True, exist_ok=True)
    job_path, log_path = folder / "job.json", folder / "log.txt"
    job_path.write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["num_threads"]), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(python), "-m", f"benchmarks.peers.{module}", str(job_path)]
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        yield Child(popen, log_path)
    finally:
        assert popen.stdin is not None
        popen.stdin.close()
        try:
            popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait(10)
