"""A private server of this program: ``loraplex up`` on a free port, ended with the program."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loraplex_contract.errors import Unavailable

START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 30.0
_NUM_TAIL_LINES: Final = 15


class EmbeddedServer:
    """Starts on construction and returns when it serves.

    The child watches its standard input and stops when it ends, so that it does not outlive this program, even one that
    was killed.

    Args:
        model: folder of the base model; None = the demo model.
        data_dir: where registry, store and logs live; None = a temporary folder.
        dtype: the worker's ``--dtype``; None = its default.

    Raises:
        Unavailable: it ended, or did not serve in time; the message holds the end of its log.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        data_dir: Path | None = None,
        dtype: str | None = None,
        timeout_s: float = START_TIMEOUT_S,
        command: Sequence[str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loraplex-")
        folder = Path(self._folder.name)
        self._port_file = folder / "ports.json"
        self._log_file = folder / "up.log"
        flags = _flags(model, data_dir or folder / "data", dtype, self._port_file)
        self._process = self._start([*(command or (sys.executable, "-m", "loraplex_cli.main", "up")), *flags])
        try:
            ports = self._wait(timeout_s)
        except BaseException:
            self.close()
            raise
        self.target: str = ports["listen"]
        self.admin_target: str = ports["admin_listen"]

    def close(self) -> None:
        """Stops it and removes its temporary files. Idempotent."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._folder.cleanup()

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C goes to the program, which then stops the server.
        with self._log_file.open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
            )

    def _wait(self, timeout_s: float) -> dict[str, str]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._port_file.exists():
                ports: dict[str, str] = json.loads(self._port_file.read_text())
                return ports
            if (code := self._process.poll()) is not None:
                raise Unavailable(f"the embedded server ended with code {code}:\n{self._tail()}", reason="NOT_STARTED")
            time.sleep(0.05)
        message = f"the embedded server did not serve within {timeout_s:g} s:\n{self._tail()}"
        raise Unavailable(message, reason="NOT_STARTED")

    def _tail(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()[-_NUM_TAIL_LINES:]
        return "\n".join(lines) or "(it wrote no log)"


def _flags(model: str | None, data_dir: Path, dtype: str | None, port_file: Path) -> list[str]:
    flags = ["--listen", "127.0.0.1:0", "--port-file", str(port_file), "--data-dir", str(data_dir), "--stop-with-stdin"]
    flags += ["--model", model] if model else []
    return flags + (["--dtype", dtype] if dtype else [])
