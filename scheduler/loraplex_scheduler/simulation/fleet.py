"""Many runs on the cores that there are: child processes that take runs by name and answer with JSON, a line each."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from loraplex_scheduler.simulation.metrics import RunMetrics
from loraplex_scheduler.simulation.report import from_json, to_json
from loraplex_scheduler.simulation.runner import simulate
from loraplex_scheduler.simulation.workloads.catalogue import make_workload

MODULE: Final = "loraplex_scheduler.simulation"


class RunFailed(Exception):
    """A child process ended without an answer; its standard error says why."""


def answer_runs(lines: TextIO, answers: TextIO) -> None:
    """A child's whole life: ``workload policy seed`` in, the metrics out."""
    for line in lines:
        workload, policy, seed = line.split()
        _, metrics = simulate(make_workload(workload, int(seed)), policy, seed=int(seed))
        answers.write(to_json(metrics, indent=None) + "\n")
        answers.flush()


class Fleet:
    """Runs (workload, policy) pairs, the longest first if they are given so."""

    def __init__(self, runs: Sequence[tuple[str, str]], *, seed: int, num_processes: int) -> None:
        self._seed: Final = seed
        self._num_processes: Final = min(num_processes, max(1, len(runs)))
        self._waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        for run in runs:
            self._waiting.put(run)
        self._answers: queue.SimpleQueue[RunMetrics | BaseException] = queue.SimpleQueue()
        self._num_runs: Final = len(runs)

    def run(self, on_done: Callable[[RunMetrics], None]) -> None:
        """Calls ``on_done`` here with each run as it ends.

        Raises:
            RunFailed: one could not be carried out; the others are given up.
        """
        children = [_start_child() for _ in range(self._num_processes)]
        feeders = [threading.Thread(target=self._feed, args=(child,)) for child in children]
        try:
            for feeder in feeders:
                feeder.start()
            for _ in range(self._num_runs):
                answer = self._answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                on_done(answer)
        finally:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            for child, feeder in zip(children, feeders, strict=True):
                child.kill()
                feeder.join()
                _close(child)

    def _feed(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        while True:
            try:
                workload, policy = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                child.stdin.write(f"{workload} {policy} {self._seed}\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                self._answers.put(RunFailed(f"the run of {workload} under {policy} broke off: see above"))
                return
            self._answers.put(from_json(answer))


def _start_child() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", MODULE, "--answer-runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    )


def _close(child: "subprocess.Popen[str]") -> None:
    """Of a child that was killed."""
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
    child.wait()
