"""The thread that owns an engine: takes commands from others, steps, and reports through callbacks."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from loraplex_contract.errors import ResourceExhausted, Unavailable
from loraplex_worker.engine.command import AttachAdapter, Command, EvictAdapter, Reset
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.refusal import CommandRefused
from loraplex_worker.engine.report import StepReport

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Proof of work, for heartbeats."""

    num_steps: int
    turn_ns: int
    """``time.monotonic_ns()`` of the loop's last turn."""
    is_idle: bool
    """Whether the loop sleeps because there is nothing to do; an old ``turn_ns`` is then no sign of trouble."""
    is_alive: bool
    num_pending: int
    """Commands not yet applied."""
    num_sequences: int
    """Live ones, paused ones too."""

    def loop_age_ns(self, now_ns: int) -> int:
        """How long the loop has been in its present turn; 0 while it is idle."""
        return 0 if self.is_idle else max(0, now_ns - self.turn_ns)


@dataclasses.dataclass(slots=True, kw_only=True)
class LoopTimes:
    """Where the loop's time went since it started. The step thread adds; reading from elsewhere is as of just now."""

    commands_ns: int = 0
    step_ns: int = 0
    report_ns: int = 0
    idle_ns: int = 0


class StepThread:
    """Drives one engine. Methods may be called from any thread; callbacks run on the step thread and must be short.

    Order: commands are applied in the order of submission, all that are there before each step.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_report: Callable[[StepReport], None],
        on_refused: Callable[[Command, CommandRefused], None],
        on_applied: Callable[[Command], None],
        on_fatal: Callable[[BaseException], None],
        max_pending: int = 65536,
        check_interval_s: float = 60.0,
    ) -> None:
        """Nothing runs before ``start``.

        Args:
            engine: not to be touched by anybody else from now on.
            on_report: after each step that computed something.
            on_refused: a command that the engine refused.
            on_applied: an AttachAdapter, EvictAdapter or Reset that was carried out.
            on_fatal: once, where a step, a command or a callback raised; the loop is over and the process should end.
            max_pending: bound of the inbox.
            check_interval_s: the invariants are checked when the loop falls idle, at most this often.
        """
        self._engine = engine
        self._on_report = on_report
        self._on_refused = on_refused
        self._on_applied = on_applied
        self._on_fatal = on_fatal
        self._max_pending = max_pending
        self._check_interval_ns = int(check_interval_s * 1e9)
        self._checked_ns = time.monotonic_ns()
        self._changed = threading.Condition()
        self._inbox: list[Command] = []
        self._is_stopping = False
        self._is_idle = True
        self._turn_ns = time.monotonic_ns()
        self._num_steps = engine.num_steps
        self._times = LoopTimes()
        # Not a daemon: an interpreter that exits in the middle of a step may crash in native code.
        self._thread = threading.Thread(target=self._run, name="step", daemon=False)

    def start(self) -> None:
        self._thread.start()

    def __enter__(self) -> "StepThread":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, commands: Iterable[Command]) -> None:
        """Hand over commands, all or none. Never waits for a step.

        Raises:
            ResourceExhausted: the inbox is full: the loop hangs, or the sender sends without measure.
            Unavailable: the thread is stopping or over.
        """
        batch = list(commands)
        with self._changed:
            if self._is_stopping:
                raise Unavailable("the worker is stopping", reason="WORKER_STOPPING")
            if len(self._inbox) + len(batch) > self._max_pending:
                raise ResourceExhausted(
                    f"the worker's inbox holds {len(self._inbox)} commands of at most {self._max_pending}",
                    reason="WORKER_INBOX_FULL",
                )
            self._inbox.extend(batch)
            self._changed.notify()

    def progress(self) -> StepProgress:
        """How far the loop is. Cheap; does not wait for a step."""
        with self._changed:
            return StepProgress(
                num_steps=self._num_steps,
                turn_ns=self._turn_ns,
                is_idle=self._is_idle and not self._inbox,
                is_alive=self._thread.is_alive(),
                num_pending=len(self._inbox),
                num_sequences=self._engine.num_sequences,
            )

    def times(self) -> LoopTimes:
        """A copy. Takes no lock."""
        return dataclasses.replace(self._times)

    def stop(self, timeout_s: float = 30.0) -> bool:
        """End the loop after the present step; commands that are still pending are dropped.

        Returns:
            Whether the thread has ended within ``timeout_s``. Calling again is fine.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (commands := self._next_commands()) is not None:
                start_ns = time.perf_counter_ns()
                for command in commands:
                    self._apply(command)
                self._times.commands_ns += time.perf_counter_ns() - start_ns
                self._step()
        except BaseException as error:
            self._end(error)

    def _next_commands(self) -> list[Command] | None:
        """What to apply before the next step; sleeps where there is nothing to do; None at the end."""
        has_work = self._engine.has_work()
        if not has_work:
            self._check_now_and_then()
        with self._changed:
            while not (has_work or self._inbox or self._is_stopping):
                self._is_idle = True
                start_ns = time.perf_counter_ns()
                self._changed.wait()
                self._times.idle_ns += time.perf_counter_ns() - start_ns
            self._is_idle = False
            self._turn_ns = time.monotonic_ns()
            if self._is_stopping:
                return None
            commands, self._inbox = self._inbox, []
            return commands

    def _apply(self, command: Command) -> None:
        try:
            self._engine.apply(command)
        except CommandRefused as refusal:
            self._on_refused(command, refusal)
            return
        if isinstance(command, AttachAdapter | EvictAdapter | Reset):
            self._on_applied(command)

    def _step(self) -> None:
        start_ns = time.perf_counter_ns()
        report = self._engine.step()
        stepped_ns = time.perf_counter_ns()
        self._times.step_ns += stepped_ns - start_ns
        if report is not None:
            self._num_steps = report.step
            self._on_report(report)
            self._times.report_ns += time.perf_counter_ns() - stepped_ns

    def _check_now_and_then(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._checked_ns >= self._check_interval_ns:
            self._checked_ns = now_ns
            self._engine.check()

    def _end(self, error: BaseException) -> None:
        with self._changed:
            was_stopping, self._is_stopping = self._is_stopping, True
            self._inbox.clear()
        if was_stopping:
            # Whoever gets the callbacks may be gone already; that is no failure of the engine.
            _LOG.warning("the step thread ended with an error while stopping", exc_info=error)
            return
        _LOG.critical("the step thread failed", exc_info=error)
        self._on_fatal(error)
