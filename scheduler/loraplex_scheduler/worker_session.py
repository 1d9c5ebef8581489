"""One worker's stream: a reader, a writer, and a watch over its lease and its step loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from loraplex.worker.v1 import worker_link_pb2
from loraplex_contract.errors import Aborted, FailedPrecondition, InvalidArgument, LoraplexError
from loraplex_scheduler.core.command import WorkerCommand
from loraplex_scheduler.core.event import WorkerConnected, WorkerLost
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.outbox import Outbox
from loraplex_scheduler.worker_convert import (
    adapter_from_pb,
    deltas_to_pb,
    info_from_pb,
    refused_from_pb,
    report_from_pb,
)

_log = structlog.get_logger(__name__)
PROTOCOL_VERSION = 1


class _PeerGone(Exception):
    """Ends the session's tasks: the worker left, or its stream ended."""


class WorkerSession:
    """From Register to the end of the stream, under one epoch."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        register: worker_link_pb2.Register,
        *,
        epoch: int,
        heartbeat_s: float,
        lease_ttl_s: float,
        stall_s: float,
        max_frames: int,
    ) -> None:
        """Raises LoraplexError for a worker that cannot be used."""
        if register.protocol_version != PROTOCOL_VERSION:
            message = f"protocol version {register.protocol_version}; this scheduler speaks {PROTOCOL_VERSION}"
            raise FailedPrecondition(message, reason="PROTOCOL_VERSION")
        self._dispatcher = dispatcher
        self._info = info_from_pb(register, epoch)
        self._heartbeat_s = heartbeat_s
        self._lease_ttl_s = lease_ttl_s
        self._stall_s = stall_s
        self._outbox: Outbox[worker_link_pb2.ServeResponse] = Outbox(max_frames)
        self._heard_ns = dispatcher.now_ns
        self._stalled_s = 0.0
        self._fenced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._end_cause = "STREAM_ENDED"

    def send(self, batch: list[WorkerCommand]) -> None:
        self._outbox.put(deltas_to_pb(batch, self._info.epoch))

    def fence(self, cause: str) -> None:
        if not self._fenced.done():
            self._fenced.set_result(cause)

    async def run(self, requests: AsyncIterator[worker_link_pb2.ServeRequest], context: Any) -> None:
        """Serve until the worker is gone or not to be trusted any more (Aborted)."""
        worker_id, epoch = self._info.worker_id, self._info.epoch
        self._outbox.put(self._registered())
        self._dispatcher.add_worker(worker_id, epoch, self)
        await self._dispatcher.apply(WorkerConnected(info=self._info))
        _log.info("worker_connected", worker_id=worker_id, epoch=epoch, num_pages=self._info.num_pages)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(requests), name=f"worker {worker_id} read")
                tasks.create_task(self._write(context), name=f"worker {worker_id} write")
                tasks.create_task(self._watch(), name=f"worker {worker_id} watch")
                tasks.create_task(self._heed_fence(), name=f"worker {worker_id} fence")
        except* _PeerGone:
            pass
        except* LoraplexError as group:
            self._end_cause = _first(group).reason
            raise
        finally:
            self._dispatcher.drop_worker(worker_id, epoch, cause=self._end_cause)
            await asyncio.shield(self._dispatcher.post(WorkerLost(worker_id=worker_id, epoch=epoch)))
            _log.info("worker_gone", worker_id=worker_id, epoch=epoch, cause=self._end_cause)

    def _registered(self) -> worker_link_pb2.ServeResponse:
        registered = worker_link_pb2.Registered(epoch=self._info.epoch)
        registered.lease_ttl.FromNanoseconds(int(self._lease_ttl_s * 1e9))
        registered.heartbeat_interval.FromNanoseconds(int(self._heartbeat_s * 1e9))
        return worker_link_pb2.ServeResponse(registered=registered)

    async def _read(self, requests: AsyncIterator[worker_link_pb2.ServeRequest]) -> None:
        async for request in requests:
            self._heard_ns = self._dispatcher.now_ns
            match request.WhichOneof("frame"):
                case "report":
                    await self._dispatcher.post(report_from_pb(request.report, self._info.worker_id))
                case "heartbeat":
                    self._take_heartbeat(request.heartbeat)
                case "adapter":
                    await self._dispatcher.post(adapter_from_pb(request.adapter, self._info.worker_id))
                case "refused":
                    await self._dispatcher.post(refused_from_pb(request.refused, self._info.worker_id))
                case "leave":
                    self._end_cause = "LEFT"
                    break
                case _:
                    raise InvalidArgument("a worker registers once per stream", reason="PROTOCOL_VIOLATION")
        raise _PeerGone

    def _take_heartbeat(self, heartbeat: worker_link_pb2.WorkerHeartbeat) -> None:
        self._stalled_s = heartbeat.loop_age.ToNanoseconds() / 1e9 if heartbeat.has_work else 0.0
        ack = worker_link_pb2.HeartbeatAck(sequence=heartbeat.sequence)
        self._outbox.put(worker_link_pb2.ServeResponse(heartbeat=ack))

    async def _write(self, context: Any) -> None:
        while True:
            await context.write(await self._outbox.get())

    async def _watch(self) -> None:
        """An open stream proves nothing: a frozen worker's pings are answered by its transport."""
        while True:
            await asyncio.sleep(min(self._heartbeat_s, self._lease_ttl_s) / 4)
            self._outbox.check()
            silent_s = (self._dispatcher.now_ns - self._heard_ns) / 1e9
            if silent_s > self._lease_ttl_s:
                raise Aborted(f"not heard of for {silent_s:.1f} s: the lease is over", reason="LEASE_EXPIRED")
            if self._stalled_s > self._stall_s:
                raise Aborted(f"the step loop has stood still for {self._stalled_s:.1f} s", reason="STEP_LOOP_STALLED")

    async def _heed_fence(self) -> None:
        raise Aborted(f"fenced: {await self._fenced}", reason="FENCED")


def _first(group: BaseExceptionGroup[LoraplexError]) -> LoraplexError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
