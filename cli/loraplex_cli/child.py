"""One supervised process: started, watched, started again, stopped."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loraplex_cli import tied_child
from loraplex_cli.bounded_log import BoundedLog
from loraplex_cli.console import CommandFailed
from loraplex_cli.restart_policy import CrashRecord, RestartPolicy

POLL_S: Final = 0.02


class ChildFailed(CommandFailed):
    """A child did not start, or ended too often. The message holds the end of its log."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListenFlag:
    """A flag with an address. Port 0 takes a free port at the first start; later starts take the same one again."""

    flag: str
    key: str
    """Its name in the port file."""
    address: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run. With ``port_file`` it is ready once it has written that, else as soon as it runs."""

    name: str
    command: tuple[str, ...]
    listen: tuple[ListenFlag, ...] = ()
    port_file: Path | None = None
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 15.0


class Child:
    """Owned by the supervisor. ``run`` keeps it alive until ``stop``, or raises ChildFailed.

    Until ``is_settled`` is set nothing is started again: what fails at the start would fail again.
    """

    def __init__(
        self, spec: ChildSpec, log: BoundedLog, policy: RestartPolicy, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.addresses = {entry.key: entry.address for entry in spec.listen}
        self.num_starts = 0
        self.is_settled = False
        self._log = log
        self._record = CrashRecord(policy)
        self._tell = tell
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Raises ChildFailed if it ends before it has settled, or too often in a row."""
        try:
            while not self._stopping.is_set():
                await self._run_once()
        finally:
            self.kill()
            if self._process is not None:
                await self._process.wait()
            self._log.close()

    async def stop(self, timeout_s: float | None = None) -> None:
        """SIGTERM, then after the timeout SIGKILL for it and all that it started."""
        self._stopping.set()
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(self.spec.stop_timeout_s if timeout_s is None else timeout_s):
                await self._process.wait()
        except TimeoutError:
            self._tell(f"{self.spec.name} did not stop in time and was killed")
        self.kill()
        await self._process.wait()

    async def _run_once(self) -> None:
        started_s = asyncio.get_running_loop().time()
        self._process = process = await self._spawn()
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(process), name=f"{self.spec.name}/log")
            ready = tasks.create_task(self._await_ready(process), name=f"{self.spec.name}/ready")
            code = await process.wait()
            ready.cancel()
            self.kill()
            await asyncio.wait({pump}, timeout=1.0)
            pump.cancel()
        if not self._stopping.is_set():
            await self._after_crash(code, asyncio.get_running_loop().time() - started_s)

    async def _spawn(self) -> asyncio.subprocess.Process:
        if self.spec.port_file is not None:
            self.spec.port_file.parent.mkdir(parents=True, exist_ok=True)
            self.spec.port_file.unlink(missing_ok=True)
        self.num_starts += 1
        # -S and -E make the short-lived wrapper start in a few milliseconds; they do not reach the command.
        wrapper = (sys.executable, "-S", "-E", str(Path(tied_child.__file__)), str(os.getpid()))
        return await asyncio.create_subprocess_exec(
            *wrapper,
            *self._command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches the supervisor alone, which stops the children in order.
            start_new_session=True,
        )

    def _command(self) -> list[str]:
        command = list(self.spec.command)
        for entry in self.spec.listen:
            command += [entry.flag, self.addresses[entry.key]]
        if self.spec.port_file is not None:
            command += ["--port-file", str(self.spec.port_file)]
        return command

    async def _pump(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(1 << 16):
            self._log.write(data)

    async def _await_ready(self, process: asyncio.subprocess.Process) -> None:
        path = self.spec.port_file
        if path is not None:
            try:
                async with asyncio.timeout(self.spec.start_timeout_s):
                    # Another process makes the file: there is nothing to wait on but the file itself.
                    while not path.exists():  # noqa: ASYNC110
                        await asyncio.sleep(POLL_S)
            except TimeoutError:
                self._tell(f"{self.spec.name} did not listen within {self.spec.start_timeout_s:g} s and was killed")
                process.kill()
                return
            found = json.loads(path.read_text())
            self.addresses.update({key: found[key] for key in self.addresses if key in found})
        self.ready.set()

    async def _after_crash(self, code: int, uptime_s: float) -> None:
        how = f"{self.spec.name} ended with {_code_text(code)}"
        if not self.is_settled:
            raise ChildFailed(f"{how} while the service was starting; the end of its log:\n{self._log.tail()}")
        delay_s = self._record.next_delay_s(uptime_s)
        if delay_s is None:
            times = f"{self._record.num_crashes} times in a row"
            raise ChildFailed(f"{how}, {times}; the end of its log:\n{self._log.tail()}")
        self._tell(f"{how} after {uptime_s:.1f} s; starting it again in {delay_s:g} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    def kill(self) -> None:
        """The whole group, so that nothing it started stays behind."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _code_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
