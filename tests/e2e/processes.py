"""Starts the real processes on free loopback ports, and ends every one of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
START_TIMEOUT_S = 90.0


def wait_until(question: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The first truthy answer, asked every 20 ms; AssertionError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = question()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"after {timeout_s} s still not: {what}")


class Process:
    """One child in a process group of its own, with its output in a file."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.port_file = folder / f"{name}.port.json"
        self.port_file.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
        with self.log_path.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def ports(self) -> dict[str, str]:
        """What the process wrote into its port file, once it has."""

        def read() -> dict[str, str] | None:
            assert self.popen.poll() is None, f"{self.name} ended with {self.popen.returncode}:\n{self.log()[-3000:]}"
            return json.loads(self.port_file.read_text()) if self.port_file.exists() else None

        return wait_until(read, START_TIMEOUT_S, f"{self.name} listens")

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, then SIGKILL; the exit code."""
        self.send(signal.SIGTERM)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.popen.wait(5)


class Cluster:
    """A scheduler, workers and frontends, each with the flags that a test wants."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.store = folder / "store"
        self.processes: list[Process] = []
        self.scheduler_address = ""
        folder.mkdir(parents=True, exist_ok=True)

    def start_scheduler(self, *flags: str, listen: str = "127.0.0.1:0") -> Process:
        process = self._start("scheduler", "--listen", listen, "--state-dir", str(self.folder / "state"), *flags)
        self.scheduler_address = process.ports()["listen"]
        return process

    def start_worker(self, *flags: str, name: str = "worker") -> Process:
        return self._start(name, *self._shared(), *flags, module="loraplex_worker", with_port=False)

    def start_frontend(self, *flags: str, name: str = "frontend") -> Process:
        listen = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        return self._start(name, *listen, *self._shared(), *flags, module="loraplex_frontend")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()

    def _shared(self) -> tuple[str, ...]:
        return ("--scheduler", self.scheduler_address, "--model", str(self.model), "--store", str(self.store))

    def _start(self, name: str, *flags: str, module: str = "loraplex_scheduler", with_port: bool = True) -> Process:
        port_file = ("--port-file", str(self.folder / f"{name}.port.json")) if with_port else ()
        process = Process(name, [module, *flags, *port_file], self.folder)
        self.processes.append(process)
        return process


@contextlib.contextmanager
def cluster(folder: Path, model: Path) -> Iterator[Cluster]:
    """Every process of the cluster is gone when this ends, whatever happened."""
    running = Cluster(folder, model)
    try:
        yield running
    finally:
        running.stop()
        leftovers = [process.name for process in running.processes if process.popen.poll() is None]
        assert leftovers == []
