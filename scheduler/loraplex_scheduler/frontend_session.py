"""One frontend's stream: a reader, a writer and a heartbeat."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import structlog

from loraplex.worker.v1 import frontend_link_pb2
from loraplex_contract.errors import FailedPrecondition, InvalidArgument
from loraplex_scheduler.core.event import FrontendConnected, FrontendLost, Submitted
from loraplex_scheduler.dispatch import Dispatcher, FrontendCommand
from loraplex_scheduler.frontend_convert import downward_to_pb, events_from_pb, summary_to_pb
from loraplex_scheduler.model_agreement import ModelAgreement
from loraplex_scheduler.outbox import Outbox

_log = structlog.get_logger(__name__)
PROTOCOL_VERSION = 1
_streams = itertools.count(1)


class _PeerGone(Exception):
    """Ends the session's tasks: the frontend said goodbye, or its stream ended."""


class FrontendSession:
    """From Hello to the end of the stream. Its requests end with it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        models: ModelAgreement,
        *,
        epoch: int,
        heartbeat_s: float,
        max_frames: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._models = models
        self._epoch = epoch
        self._heartbeat_s = heartbeat_s
        self._outbox: Outbox[frontend_link_pb2.LinkResponse] = Outbox(max_frames)
        self._hello = frontend_link_pb2.Hello()

    def send(self, turn: int, batch: list[FrontendCommand]) -> None:
        self._outbox.put(downward_to_pb(turn, batch))

    async def run(self, requests: AsyncIterator[frontend_link_pb2.LinkRequest], context: Any) -> None:
        """Serve until the peer is gone. Raises LoraplexError for a peer that breaks the protocol."""
        self._hello = await self._take_hello(requests)
        # Of the stream, not of the process: a late end of an older stream must not end this one's requests.
        frontend_id, incarnation = self._hello.frontend_id, f"{self._hello.incarnation}/{next(_streams)}"
        await self._dispatcher.apply(FrontendConnected(frontend_id=frontend_id, incarnation=incarnation))
        self._dispatcher.add_frontend(frontend_id, self)
        _log.info("frontend_connected", frontend_id=frontend_id)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(requests), name=f"frontend {frontend_id} read")
                tasks.create_task(self._write(context), name=f"frontend {frontend_id} write")
                tasks.create_task(self._beat(), name=f"frontend {frontend_id} heartbeat")
        except* _PeerGone:
            pass
        finally:
            self._dispatcher.drop_frontend(frontend_id, self)
            await asyncio.shield(self._dispatcher.post(FrontendLost(frontend_id=frontend_id, incarnation=incarnation)))
            _log.info("frontend_gone", frontend_id=frontend_id)

    async def _take_hello(self, requests: AsyncIterator[frontend_link_pb2.LinkRequest]) -> frontend_link_pb2.Hello:
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello") or not first.hello.frontend_id:
            raise InvalidArgument("the first frame must be Hello with a frontend_id", reason="PROTOCOL_VIOLATION")
        if first.hello.protocol_version != PROTOCOL_VERSION:
            message = f"protocol version {first.hello.protocol_version}; this scheduler speaks {PROTOCOL_VERSION}"
            raise FailedPrecondition(message, reason="PROTOCOL_VERSION")
        self._models.check(first.hello.model_fingerprint)
        return first.hello

    async def _read(self, requests: AsyncIterator[frontend_link_pb2.LinkRequest]) -> None:
        async for request in requests:
            if request.HasField("goodbye"):
                break
            upward = request.upward
            for event in events_from_pb(upward, self._hello.frontend_id, now_ns=self._dispatcher.now_ns):
                if isinstance(event, Submitted) and self._dispatcher.has_request(event.key):
                    raise InvalidArgument(f"handle {event.key.handle} is in use", reason="PROTOCOL_VIOLATION")
                await self._dispatcher.post(event)
        raise _PeerGone

    async def _write(self, context: Any) -> None:
        ready = frontend_link_pb2.Ready(epoch=self._epoch, cluster=summary_to_pb(self._dispatcher.statistics()))
        ready.heartbeat_interval.FromNanoseconds(int(self._heartbeat_s * 1e9))
        await context.write(frontend_link_pb2.LinkResponse(ready=ready))
        while True:
            await context.write(await self._outbox.get())

    async def _beat(self) -> None:
        """News of the cluster at once, and a sign of life in any case."""
        last = frontend_link_pb2.ClusterSummary()
        waited_s = 0.0
        while True:
            self._outbox.check()
            summary = summary_to_pb(self._dispatcher.statistics())
            changed = summary.num_ready_workers != last.num_ready_workers
            if changed or waited_s >= self._heartbeat_s:
                heartbeat = frontend_link_pb2.SchedulerHeartbeat(cluster=summary)
                self._outbox.put(frontend_link_pb2.LinkResponse(heartbeat=heartbeat))
                last, waited_s = summary, 0.0
            pause_s = min(0.1, self._heartbeat_s)
            await asyncio.sleep(pause_s)
            waited_s += pause_s
