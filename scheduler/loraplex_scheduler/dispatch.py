"""The one task that owns the core: events of all peers go in by a bounded queue, commands go out to their sessions."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import structlog

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.event import Event, RequestKey, Tick
from loraplex_scheduler.core.statistics import CoreStatistics

_log = structlog.get_logger(__name__)

TICK_S = 0.05
"""Time passes for the core at least so often; at deadlines it does to the point."""
CHECK_INTERVAL_NS = 60 * 1_000_000_000
"""The invariants are checked at most so often, while nothing is in flight."""
MAX_EVENTS_PER_TURN = 512
FrontendCommand: TypeAlias = commands.FrontendCommand | commands.CancelAnswered


class FrontendPeer(Protocol):
    def send(self, turn: int, batch: list[FrontendCommand]) -> None: ...


class WorkerPeer(Protocol):
    def send(self, batch: list[commands.WorkerCommand]) -> None: ...

    def fence(self, cause: str) -> None: ...


class TurnObserver(Protocol):
    """Counts what happens; changes nothing."""

    def on_turn(
        self, turn: Sequence[Event], batch: Sequence[commands.Command], *, now_ns: int, duration_ns: int
    ) -> None: ...

    def on_statistics(self, statistics: CoreStatistics) -> None: ...

    def on_worker_gone(self, cause: str) -> None: ...


class Dispatcher:
    """Peers register themselves; ``run`` must run while they are served."""

    def __init__(self, core: SchedulerCore, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._core = core
        self._clock = clock
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[None] | None]] = asyncio.Queue(maxsize=4096)
        self._frontends: dict[str, FrontendPeer] = {}
        self._workers: dict[tuple[str, int], WorkerPeer] = {}
        self._turn = 0
        self._ticked_ns = clock()
        self._checked_ns = clock()
        self.on_gone: Callable[[str, str], None] = lambda tenant, name: None
        """Called with each name whose unregistration is complete."""
        self.observer: TurnObserver | None = None

    @property
    def now_ns(self) -> int:
        return self._clock()

    async def post(self, event: Event) -> None:
        """Waits only where the core is behind."""
        await self._inbox.put((event, None))

    async def apply(self, event: Event) -> None:
        """Returns when the core has taken the event."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._inbox.put((event, done))
        await done

    def add_frontend(self, frontend_id: str, peer: FrontendPeer) -> None:
        self._frontends[frontend_id] = peer

    def drop_frontend(self, frontend_id: str, peer: FrontendPeer) -> None:
        if self._frontends.get(frontend_id) is peer:
            del self._frontends[frontend_id]

    def add_worker(self, worker_id: str, epoch: int, peer: WorkerPeer) -> None:
        self._workers[worker_id, epoch] = peer

    def drop_worker(self, worker_id: str, epoch: int, *, cause: str) -> None:
        """``cause``: LEFT, STREAM_ENDED or the reason of the error that ended the stream."""
        del self._workers[worker_id, epoch]
        if self.observer is not None:
            self.observer.on_worker_gone(cause)

    @property
    def num_frontends(self) -> int:
        return len(self._frontends)

    def has_request(self, key: RequestKey) -> bool:
        return self._core.has_request(key)

    def statistics(self) -> CoreStatistics:
        statistics = self._core.statistics()
        if self.observer is not None:
            self.observer.on_statistics(statistics)
        return statistics

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            turn, waiting = await self._gather()
            self._take_turn(turn)
            self._check_now_and_then()
            for done in waiting:
                if not done.done():
                    done.set_result(None)

    def _check_now_and_then(self) -> None:
        """A broken invariant is worth an alarm; to go on serving is worth more."""
        if self._clock() - self._checked_ns < CHECK_INTERVAL_NS or not self._core.is_idle:
            return
        self._checked_ns = self._clock()
        try:
            self._core.check()
        except AssertionError:
            _log.critical("invariant_broken", exc_info=True)

    async def _gather(self) -> tuple[list[Event], list[asyncio.Future[None]]]:
        """Everything that has come, and a Tick where one is due: a busy inbox must not keep time from passing."""
        entries = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s()):
                entries.append(await self._inbox.get())
        while len(entries) < MAX_EVENTS_PER_TURN and not self._inbox.empty():
            entries.append(self._inbox.get_nowait())
        events: list[Event] = [event for event, _ in entries]
        if self._timeout_s() == 0.0:
            self._ticked_ns = self._clock()
            events.append(Tick())
        return events, [done for _, done in entries if done is not None]

    def _timeout_s(self) -> float:
        """To the next Tick; 0 if it is due."""
        due_ns = self._ticked_ns + int(TICK_S * 1e9)
        timer_ns = self._core.next_timer_ns()
        if timer_ns is not None:
            due_ns = min(due_ns, timer_ns)
        return max(0.0, (due_ns - self._clock()) / 1e9)

    def _take_turn(self, events: list[Event]) -> None:
        self._turn += 1
        to_frontends: dict[str, list[FrontendCommand]] = {}
        to_workers: dict[tuple[str, int], list[commands.WorkerCommand]] = {}
        now_ns = self._clock()
        batch = self._core.handle_all(events, now_ns=now_ns)
        for command in batch:
            match command:
                case commands.CancelAnswered():
                    to_frontends.setdefault(command.frontend_id, []).append(command)
                case commands.FenceWorker():
                    self._fence(command)
                case commands.AdapterGone():
                    self.on_gone(command.tenant, command.name)
                case commands.VersionReleased():
                    _log.info("version_released", digest=command.digest)
                case (
                    commands.Admit()
                    | commands.Grant()
                    | commands.Retire()
                    | commands.LoadAdapter()
                    | commands.EvictAdapter()
                    | commands.SetBudget()
                ):
                    to_workers.setdefault((command.worker_id, command.epoch), []).append(command)
                case _:
                    to_frontends.setdefault(command.key.frontend_id, []).append(command)
        self._send(to_frontends.items(), to_workers.items())
        if self.observer is not None:
            self.observer.on_turn(events, batch, now_ns=now_ns, duration_ns=self._clock() - now_ns)

    def _send(
        self,
        to_frontends: Iterable[tuple[str, list[FrontendCommand]]],
        to_workers: Iterable[tuple[tuple[str, int], list[commands.WorkerCommand]]],
    ) -> None:
        """Workers first: their next step waits for it. A peer that has just gone misses what it could not read."""
        for registration, batch in to_workers:
            worker = self._workers.get(registration)
            if worker is not None:
                worker.send(batch)
        for frontend_id, frontend_batch in to_frontends:
            frontend = self._frontends.get(frontend_id)
            if frontend is not None:
                frontend.send(self._turn, frontend_batch)

    def _fence(self, command: commands.FenceWorker) -> None:
        _log.error("worker_fenced", worker_id=command.worker_id, epoch=command.epoch, cause=command.cause)
        worker = self._workers.get((command.worker_id, command.epoch))
        if worker is not None:
            worker.fence(command.cause)
