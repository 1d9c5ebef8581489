"""The step thread as the event loop sees it: every call-back arrives on the loop, in the order in which it happened."""

import asyncio
import collections
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVarTuple

from loraplex_worker.engine.command import Command, Reset
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.refusal import CommandRefused
from loraplex_worker.engine.report import StepReport
from loraplex_worker.step_thread import LoopTimes, StepProgress, StepThread

_Args = TypeVarTuple("_Args")


class EngineFailed(Exception):
    """A step, a command or a call-back raised: the engine's state can no longer be trusted and the process must end."""


class EngineListener(Protocol):
    """Who is told what the engine did. Called on the loop; must not raise."""

    def on_report(self, report: StepReport) -> None: ...

    def on_refused(self, command: Command, refusal: CommandRefused) -> None: ...

    def on_applied(self, command: Command) -> None:
        """An AttachAdapter or EvictAdapter was carried out."""
        ...


class EngineObserver(Protocol):
    """Told the same whether anybody listens or not, and counts it. Called on the loop; must not raise."""

    def on_report(self, report: StepReport) -> None: ...

    def on_refused(self, refusal: CommandRefused) -> None: ...

    def on_applied(self, command: Command) -> None: ...


class EnginePort:
    """Owns the step thread of one engine. All methods are for the loop that made it."""

    def __init__(self, engine: Engine, *, observer: EngineObserver | None = None) -> None:
        """Nothing runs before ``start``. Must be called on the running loop."""
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._listener: EngineListener | None = None
        self._resets: collections.deque[asyncio.Future[None]] = collections.deque()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._thread = StepThread(
            engine,
            on_report=self._on_loop(self._report),
            on_refused=self._on_loop(self._refuse),
            on_applied=self._on_loop(self._apply),
            on_fatal=self._on_loop(self._fail),
        )

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> bool:
        """End the step thread after its present step. Returns whether it ended in time."""
        return await asyncio.to_thread(self._thread.stop)

    def listen(self, listener: EngineListener | None) -> None:
        """Whom to tell from now on; None = what the engine still says is dropped."""
        self._listener = listener

    def submit(self, commands: Iterable[Command]) -> None:
        """Raises ResourceExhausted (the inbox is full: the loop hangs) or Unavailable (the thread is over)."""
        self._thread.submit(commands)

    async def reset(self) -> None:
        """Drop every sequence and free every page; returns when it is done.

        By then all call-backs of earlier commands have been delivered, so that none can be taken for the next term's.

        Raises:
            EngineFailed: the thread is over.
        """
        done = self._loop.create_future()
        self._resets.append(done)
        if self._failed.done():
            self._fail_resets(self._failed.result())
        else:
            self._thread.submit([Reset()])
        await done

    def progress(self) -> StepProgress:
        return self._thread.progress()

    def times(self) -> LoopTimes:
        return self._thread.times()

    async def watch(self) -> None:
        """Raises EngineFailed when the step thread does; never returns."""
        error = await asyncio.shield(self._failed)
        raise EngineFailed("the step thread failed") from error

    def _on_loop(self, receive: Callable[[*_Args], None]) -> Callable[[*_Args], None]:
        def hop(*values: *_Args) -> None:
            self._loop.call_soon_threadsafe(receive, *values)

        return hop

    def _report(self, report: StepReport) -> None:
        if self._observer is not None:
            self._observer.on_report(report)
        if self._listener is not None:
            self._listener.on_report(report)

    def _refuse(self, command: Command, refusal: CommandRefused) -> None:
        if self._observer is not None:
            self._observer.on_refused(refusal)
        if self._listener is not None:
            self._listener.on_refused(command, refusal)

    def _apply(self, command: Command) -> None:
        if self._observer is not None:
            self._observer.on_applied(command)
        if isinstance(command, Reset):
            done = self._resets.popleft()
            if not done.done():
                done.set_result(None)
        elif self._listener is not None:
            self._listener.on_applied(command)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_result(error)
        self._fail_resets(error)

    def _fail_resets(self, error: BaseException) -> None:
        while self._resets:
            done = self._resets.popleft()
            if not done.done():
                failure = EngineFailed("the step thread failed before it could drop its sequences")
                failure.__cause__ = error
                done.set_exception(failure)
