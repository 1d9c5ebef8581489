"""The one stream to the scheduler: everything that all requests of this frontend say to it and hear from it.

One task writes (what has gathered since its last turn, as one frame), one reads and hands each entry to its request.
When the stream is lost, every open request ends UNAVAILABLE / SCHEDULER_LOST and a new stream is tried with backoff.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from loraplex.worker.v1 import frontend_link_pb2, frontend_link_pb2_grpc
from loraplex_contract.errors import Unavailable
from loraplex_frontend.routes import Route, Routes

_log = structlog.get_logger(__name__)

PROTOCOL_VERSION: Final = 1
MISSED_HEARTBEATS: Final = 3
_FIRST_BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 2.0
_CONNECT_TIMEOUT_S: Final = 5.0
RETRY_DELAY_S: Final = 1.0


class _LinkLost(Exception):
    """Ends one stream's tasks; the text is for the log."""


class SchedulerLink:
    """Dials the scheduler, again and again, while ``run`` runs.

    Args:
        hello: who this frontend is, sent first on every stream.
        on_change: called after the link came up, went down, or brought news of the cluster.
    """

    def __init__(
        self, channel: grpc.aio.Channel, *, hello: frontend_link_pb2.Hello, on_change: Callable[[], None]
    ) -> None:
        self._stub: Any = frontend_link_pb2_grpc.FrontendLinkServiceStub(channel)
        self._hello = hello
        self._on_change = on_change
        self._routes = Routes()
        self._last_handle = 0
        self._upward = frontend_link_pb2.Upward()
        self._has_upward = asyncio.Event()
        self._is_up = asyncio.Event()
        self._is_closing = False
        self._cancels: dict[int, asyncio.Future[bool]] = {}
        self._last_nonce = 0
        self._heartbeat_s = 1.0
        self._num_missed = 0
        self.num_losses = 0
        """Streams that were lost and attempts that failed."""
        self.turn = 0
        """Of the scheduler, last heard."""
        self.cluster = frontend_link_pb2.ClusterSummary()
        """Last heard; empty while the link is down."""

    # --- asked by the rest of the frontend ---

    @property
    def is_up(self) -> bool:
        return self._is_up.is_set()

    @property
    def num_open(self) -> int:
        return len(self._routes)

    def new_handle(self) -> int:
        """Never the same twice in this process."""
        self._last_handle += 1
        return self._last_handle

    async def wait_until_up(self, grace_s: float) -> None:
        """Raises Unavailable (SCHEDULER_AWAY) if the scheduler is not back within ``grace_s``."""
        if self.is_up:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._is_up.wait()
        except TimeoutError:
            message = f"the scheduler is away and did not come back within {grace_s:g} s: try again"
            raise Unavailable(message, reason="SCHEDULER_AWAY", retry_delay_s=RETRY_DELAY_S) from None

    def submit(self, route: Route, submit: frontend_link_pb2.LinkSubmit) -> None:
        """From here on the route hears of the request until it forgets it. Only while the link is up."""
        assert self.is_up, "submitted while the link is down"
        self._routes.add(submit.handle, route)
        self._upward.submit.append(submit)
        self._has_upward.set()

    def stop(self, handle: int, index: int, num_tokens: int) -> None:
        self._upward.stop.add(handle=handle, index=index, num_tokens=num_tokens)
        self._has_upward.set()

    def cancel(self, handle: int) -> None:
        if handle in self._routes:
            self._upward.cancel.add(handle=handle)
            self._has_upward.set()

    def forget(self, handle: int) -> None:
        """The request is over on this side: whatever still comes for it is dropped."""
        self._routes.discard(handle)

    async def cancel_by_id(self, tenant: str, request_ids: list[str]) -> list[bool]:
        """Whether each was running, on whichever frontend.

        Raises:
            Unavailable: the link broke before the answer (SCHEDULER_LOST).
        """
        nonces = [self._ask_to_cancel(tenant, request_id) for request_id in request_ids]
        try:
            return [await self._cancels[nonce] for nonce in nonces]
        finally:
            for nonce in nonces:
                answer = self._cancels.pop(nonce)
                if not answer.cancel() and not answer.cancelled():
                    # Looked at, so that asyncio does not report it as lost.
                    answer.exception()

    def _ask_to_cancel(self, tenant: str, request_id: str) -> int:
        self._last_nonce += 1
        self._cancels[self._last_nonce] = asyncio.get_running_loop().create_future()
        self._upward.cancel.add(tenant=tenant, request_id=request_id, nonce=self._last_nonce)
        self._has_upward.set()
        return self._last_nonce

    # --- the stream ---

    async def run(self) -> None:
        """Keeps a stream up until cancelled or closed."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._is_closing:
            was_up = await self._run_once()
            backoff_s = _FIRST_BACKOFF_S if was_up else min(_MAX_BACKOFF_S, backoff_s * 2)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def close(self) -> None:
        """A clean end: Goodbye, once nothing is open."""
        self._is_closing = True
        self._has_upward.set()

    async def _run_once(self) -> bool:
        """One stream from dialling to loss. Whether it ever came up."""
        call = self._stub.Link()
        was_up = False
        try:
            await self._greet(call)
            was_up = True
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(call), name="link/read")
                tasks.create_task(self._write(call), name="link/write")
                tasks.create_task(self._watch(), name="link/watch")
        except* (_LinkLost, grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as group:
            if not self._is_closing:
                self.num_losses += 1
                _log.warning("scheduler link down", was_up=was_up, cause=_cause(group))
        finally:
            call.cancel()
            self._go_down()
        return was_up

    async def _greet(self, call: Any) -> None:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await call.write(frontend_link_pb2.LinkRequest(hello=self._hello))
            response = await call.read()
        if response is grpc.aio.EOF or response.WhichOneof("frame") != "ready":
            raise _LinkLost("the scheduler did not answer Hello with Ready")
        interval = response.ready.heartbeat_interval
        self._heartbeat_s = max(0.05, interval.ToNanoseconds() / 1e9) if interval.ByteSize() else 1.0
        self.cluster = response.ready.cluster
        self._upward.Clear()
        self._is_up.set()
        _log.info("scheduler link up", epoch=response.ready.epoch)
        self._on_change()

    def _go_down(self) -> None:
        """Nothing of the old stream survives it."""
        self._is_up.clear()
        self.cluster = frontend_link_pb2.ClusterSummary()
        self._upward.Clear()
        lost = Unavailable(
            "the connection to the scheduler was lost: submit again",
            reason="SCHEDULER_LOST",
            retry_delay_s=RETRY_DELAY_S,
        )
        self._routes.lose(lost)
        for answer in self._cancels.values():
            if not answer.done():
                answer.set_exception(lost)
        self._on_change()

    async def _write(self, call: Any) -> None:
        while True:
            await self._has_upward.wait()
            self._has_upward.clear()
            if self._upward.ByteSize():
                upward, self._upward = self._upward, frontend_link_pb2.Upward()
                await call.write(frontend_link_pb2.LinkRequest(upward=upward))
            if self._is_closing:
                await call.write(frontend_link_pb2.LinkRequest(goodbye=frontend_link_pb2.Goodbye()))
                await call.done_writing()
                return

    async def _read(self, call: Any) -> None:
        while True:
            response = await call.read()
            self._num_missed = 0
            if response is grpc.aio.EOF:
                raise _LinkLost("the scheduler ended the stream")
            try:
                self._take(response)
            except Exception:
                # What is left of this turn cannot be trusted: every request of the stream ends, the process lives on.
                _log.exception("a message of the scheduler could not be applied")
                raise _LinkLost("a message could not be applied") from None

    async def _watch(self) -> None:
        """Counts ticks and not time: after a pause of this process one heartbeat is missed, not three."""
        self._num_missed = 0
        while self._num_missed < MISSED_HEARTBEATS:
            await asyncio.sleep(self._heartbeat_s)
            self._num_missed += 1
        raise _LinkLost(f"no heartbeat for {MISSED_HEARTBEATS * self._heartbeat_s:g} s")

    def _take(self, response: frontend_link_pb2.LinkResponse) -> None:
        match response.WhichOneof("frame"):
            case "downward":
                self._apply(response.downward)
            case "heartbeat":
                self.cluster = response.heartbeat.cluster
                self._on_change()
            case other:
                raise _LinkLost(f"unexpected frame {other}")

    def _apply(self, down: frontend_link_pb2.Downward) -> None:
        self.turn = down.turn
        self._routes.apply(down)
        for cancelled in down.cancelled:
            answer = self._cancels.get(cancelled.nonce)
            if answer is not None and not answer.done():
                answer.set_result(cancelled.found)


def _cause(group: BaseExceptionGroup[BaseException]) -> str:
    error = group.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
