"""One stream to the scheduler, from Register to its end, and what the engine does during it."""

import asyncio
import dataclasses
import time
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf import duration_pb2

from loraplex.worker.v1 import worker_link_pb2
from loraplex_contract.errors import LoraplexError, TryLater
from loraplex_worker import convert
from loraplex_worker.adapter_cache import AdapterCache
from loraplex_worker.adapter_tier import AdapterTier, TierEvents
from loraplex_worker.engine.command import AttachAdapter, Command, EvictAdapter
from loraplex_worker.engine.refusal import CommandRefused
from loraplex_worker.engine.report import StepReport
from loraplex_worker.engine_port import EnginePort
from loraplex_worker.lease import Lease
from loraplex_worker.load_adapter import LoadAdapter

_LOG: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
MAX_WAITING_FRAMES: Final = 4096
"""Frames for a scheduler that reads slower than the engine steps. Above it the scheduler counts as lost."""


class LinkLost(Exception):
    """The stream is over or the lease is: whatever the scheduler had here is void."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What the scheduler granted with Registered."""

    epoch: int
    lease_ttl_s: float
    heartbeat_interval_s: float

    @classmethod
    def from_pb(cls, registered: worker_link_pb2.Registered) -> "Term":
        """Raises LinkLost for a term that cannot be kept."""
        term = cls(
            epoch=registered.epoch,
            lease_ttl_s=_seconds(registered.lease_ttl),
            heartbeat_interval_s=_seconds(registered.heartbeat_interval),
        )
        if not 0 < term.heartbeat_interval_s < term.lease_ttl_s:
            raise LinkLost(f"heartbeat_interval must be above 0 and below lease_ttl: {term}")
        return term


class LoadObserver(Protocol):
    """Counts how load orders ended."""

    def on_loaded(self, load_time_ns: int) -> None: ...

    def on_load_failed(self, reason: str) -> None: ...


class LinkSession:
    """Carries deltas down and reports up during one term. Lives on the loop; ``run`` is its whole life."""

    def __init__(
        self,
        call: Any,
        term: Term,
        port: EnginePort,
        cache: AdapterCache,
        *,
        registered_s: float,
        page_bytes: int,
        load_timeout_s: float,
        observer: LoadObserver | None = None,
    ) -> None:
        """Take over a call on which Registered has come.

        Args:
            call: the ``Serve`` call.
            term: of this session.
            port: already reset; this session becomes its listener.
            cache: host tier of the adapters.
            registered_s: monotonic time at which Register was sent: the lease runs from then.
            page_bytes: of one page of the pool.
            load_timeout_s: for loads without a timeout of their own.
            observer: told how each load order ended.
        """
        self._call = call
        self._term = term
        self._port = port
        self._cache = cache
        self._observer = observer
        self._lease = Lease(ttl_s=term.lease_ttl_s, now_s=registered_s)
        self._outbox: asyncio.Queue[worker_link_pb2.ServeRequest] = asyncio.Queue(MAX_WAITING_FRAMES)
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._is_leaving = False
        events = TierEvents(on_device=self._on_device, on_evicted=self._on_evicted, on_failed=self._on_failed)
        self._tier = AdapterTier(cache, self._attach, events, page_bytes=page_bytes, default_timeout_s=load_timeout_s)

    async def run(self, leave: asyncio.Event, *, leave_timeout_s: float) -> None:
        """Returns after a clean Leave, asked for by ``leave``.

        Raises:
            LinkLost: (in a group) the stream ended, or the lease did.
        """
        self._port.listen(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(), name="link/read")
                others = [
                    tasks.create_task(self._write(), name="link/write"),
                    tasks.create_task(self._send_heartbeats(), name="link/heartbeat"),
                    tasks.create_task(self._watch_lease(), name="link/lease"),
                    tasks.create_task(self._watch_broken(), name="link/broken"),
                ]
                await leave.wait()
                await self._leave(reader, leave_timeout_s)
                for task in (reader, *others):
                    task.cancel()
        finally:
            self._port.listen(None)

    @property
    def lease_left_s(self) -> float:
        return max(0.0, self._lease.expires_s - time.monotonic())

    @property
    def num_waiting_frames(self) -> int:
        return self._outbox.qsize()

    async def end(self) -> None:
        """Drop every sequence and detach every adapter; the host cache keeps them.

        Raises:
            EngineFailed: the step thread is over.
        """
        await self._port.reset()
        self._tier.close()

    def on_report(self, report: StepReport) -> None:
        self._send(report=convert.report_to_pb(report, epoch=self._term.epoch))

    def on_refused(self, command: Command, refusal: CommandRefused) -> None:
        if isinstance(command, AttachAdapter | EvictAdapter):
            self._tier.refused(command, refusal)
        if not isinstance(command, AttachAdapter):
            self._refuse(refusal)

    def on_applied(self, command: Command) -> None:
        assert isinstance(command, AttachAdapter | EvictAdapter), command
        self._tier.applied(command)

    async def _read(self) -> None:
        while True:
            try:
                frame = await read_frame(self._call)
            except LinkLost:
                if self._is_leaving:
                    return
                raise
            match frame.WhichOneof("frame"):
                case "deltas":
                    self._take_deltas(frame.deltas)
                case "heartbeat":
                    self._lease.acked(frame.heartbeat.sequence)
                case kind:
                    # A scheduler of a later version may say more than this worker knows.
                    _LOG.warning("frame_ignored", kind=kind)

    async def _write(self) -> None:
        while True:
            await write_frame(self._call, await self._outbox.get())
            self._outbox.task_done()

    async def _send_heartbeats(self) -> None:
        sequence = 0
        while True:
            sequence += 1
            self._lease.sent(sequence, time.monotonic())
            self._send(heartbeat=self._heartbeat(sequence))
            await asyncio.sleep(self._term.heartbeat_interval_s)

    async def _watch_lease(self) -> None:
        while (left_s := self._lease.expires_s - time.monotonic()) > 0:  # noqa: ASYNC110  # it ends by the clock alone
            await asyncio.sleep(left_s)
        raise LinkLost(f"no heartbeat was answered for {self._term.lease_ttl_s} s")

    async def _watch_broken(self) -> None:
        raise LinkLost(await self._broken)

    async def _leave(self, reader: asyncio.Task[None], timeout_s: float) -> None:
        """Hold nothing, say so, and wait until the scheduler ends the stream: only then has it read the Leave."""
        self._is_leaving = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.end()
                await self._outbox.put(worker_link_pb2.ServeRequest(leave=worker_link_pb2.Leave()))
                await self._outbox.join()
                await self._call.done_writing()
                await reader
        except TimeoutError:
            _LOG.warning("leave_timed_out", timeout_s=timeout_s)

    def _take_deltas(self, deltas: worker_link_pb2.Deltas) -> None:
        if self._is_leaving:
            return
        if deltas.epoch != self._term.epoch:
            _LOG.warning("deltas_of_another_epoch_dropped", epoch=deltas.epoch, own_epoch=self._term.epoch)
            return
        commands: list[Command] = []
        for item in convert.items_from_pb(deltas):
            if isinstance(item, LoadAdapter):
                self._tier.load(item)
            elif isinstance(item, CommandRefused):
                self._refuse(item)
            else:
                commands.append(self._tier.evict(item.digest) if isinstance(item, EvictAdapter) else item)
        self._submit(commands)

    def _attach(self, command: AttachAdapter) -> None:
        self._submit([command])

    def _submit(self, commands: list[Command]) -> None:
        try:
            self._port.submit(commands)
        except TryLater as error:
            self._break(error.message)

    def _send(self, **frame: Any) -> None:
        if self._is_leaving:
            return
        try:
            self._outbox.put_nowait(worker_link_pb2.ServeRequest(**frame))
        except asyncio.QueueFull:
            self._break(f"the scheduler has not read the last {MAX_WAITING_FRAMES} frames")

    def _break(self, why: str) -> None:
        if not self._broken.done():
            self._broken.set_result(why)

    def _refuse(self, refusal: CommandRefused) -> None:
        _LOG.warning(
            "command_refused",
            reason=refusal.reason.value,
            message=refusal.message,
            sequence_id=refusal.sequence_id,
            digest=refusal.digest,
        )
        self._send(refused=convert.refusal_to_pb(refusal, epoch=self._term.epoch))

    def _on_device(self, digest: str, load_time_ns: int, num_bytes: int) -> None:
        if self._observer is not None:
            self._observer.on_loaded(load_time_ns)
        epoch = self._term.epoch
        self._send(adapter=convert.on_device_to_pb(digest, epoch=epoch, load_time_ns=load_time_ns, num_bytes=num_bytes))

    def _on_evicted(self, digest: str) -> None:
        self._send(adapter=convert.evicted_to_pb(digest, epoch=self._term.epoch))

    def _on_failed(self, digest: str, error: LoraplexError) -> None:
        if self._observer is not None:
            self._observer.on_load_failed(error.reason)
        _LOG.warning("adapter_load_failed", digest=digest, reason=error.reason, message=error.message)
        self._send(adapter=convert.failed_to_pb(digest, error, epoch=self._term.epoch))

    def _heartbeat(self, sequence: int) -> worker_link_pb2.WorkerHeartbeat:
        progress = self._port.progress()
        return worker_link_pb2.WorkerHeartbeat(
            epoch=self._term.epoch,
            sequence=sequence,
            last_step=progress.num_steps,
            loop_age=convert.duration_of(progress.loop_age_ns(time.monotonic_ns())),
            has_work=not progress.is_idle,
            host_cache_bytes=self._cache.statistics().num_bytes,
        )


async def read_frame(call: Any) -> worker_link_pb2.ServeResponse:
    """The scheduler's next frame. Raises LinkLost where there is none."""
    try:
        frame = await call.read()
    except grpc.aio.AioRpcError as error:
        raise LinkLost(f"{error.code().name}: {error.details()}") from error
    if frame is grpc.aio.EOF:
        raise LinkLost("the scheduler ended the stream")
    return frame  # type: ignore[no-any-return]  # grpc.aio's calls are untyped


async def write_frame(call: Any, frame: worker_link_pb2.ServeRequest) -> None:
    """Raises LinkLost where the stream is over."""
    try:
        await call.write(frame)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        raise LinkLost(f"the stream ended under a write: {type(error).__name__}") from error


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.ToNanoseconds() / 1e9
