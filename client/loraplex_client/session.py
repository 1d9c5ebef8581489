"""One Session call: many requests over one stream. The contract is at the top of session.proto."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc

from loraplex.v1 import generation_pb2, inference_pb2_grpc, session_pb2
from loraplex_client.convert.duration import seconds
from loraplex_client.open_request import OpenRequest
from loraplex_client.rpc_errors import errors_of
from loraplex_contract import status
from loraplex_contract.errors import Cancelled, Internal, LoraplexError, Unavailable

TOKEN_WINDOW: Final = 65_536
"""Tokens that may be on their way; half of it is given back at a time."""
MISSED_HEARTBEATS: Final = 3
OPEN_TIMEOUT_S: Final = 30.0
DEFAULT_HEARTBEAT_S: Final = 10.0
SESSION_DRAINING: Final = "SESSION_DRAINING"


class Session:
    """Owns the stream and every request on it. ``run`` reads; one writer writes; all on one event loop."""

    def __init__(
        self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", target: str, metadata: Sequence[tuple[str, str]]
    ) -> None:
        self._stub = stub
        self._target = target
        self._metadata = tuple(metadata)
        # Bounded by what is open: one submit and one cancel a request, one credit a half window.
        self._outbox: asyncio.Queue[session_pb2.SessionRequest | None] = asyncio.Queue()
        self._requests: dict[int, OpenRequest] = {}
        self._last_handle = 0
        self._room = asyncio.Semaphore(0)
        self._opened = asyncio.Event()
        self._error: LoraplexError | None = None
        self._is_draining = False
        self._heartbeat_s = DEFAULT_HEARTBEAT_S
        self._num_missed = 0
        self._num_uncredited = 0

    @property
    def is_usable(self) -> bool:
        """Whether new requests may be submitted here."""
        return self._error is None and not self._is_draining

    @property
    def num_open(self) -> int:
        return len(self._requests)

    async def run(self) -> None:
        """Talks to the server until the stream ends or this task is cancelled; then every open request fails."""
        error: LoraplexError = Cancelled("the client was closed before the request was done", reason="CLIENT_CLOSED")
        call: Any = self._stub.Session(metadata=self._metadata)
        try:
            await self._converse(call)
            error = Unavailable(f"the server {self._target} ended the session", reason="SESSION_ENDED")
        except LoraplexError as lost:
            error = lost
        except Exception:
            error = Internal("the client failed to read the session: please report this", reason="CLIENT_BUG")
            raise
        finally:
            call.cancel()
            self._end(error)

    async def submit(self, request: generation_pb2.SubmitRequest) -> OpenRequest:
        """Waits for room on the server, then sends.

        Raises:
            LoraplexError: what ended the session, if it has ended; Unavailable with reason SESSION_DRAINING if it takes
                no more requests, so that this one needs another session.
        """
        await self._room.acquire()
        if not self.is_usable:
            # Wakes the next one that waits, so that all learn of it.
            self._room.release()
            raise self._error or Unavailable("the session takes no more requests", reason=SESSION_DRAINING)
        self._last_handle += 1
        opened = OpenRequest(self._last_handle, request.request_id, max(1, request.sampling.n))
        self._requests[opened.handle] = opened
        self._send(submit=session_pb2.SessionSubmit(handle=opened.handle, request=request))
        return opened

    def cancel(self, opened: OpenRequest) -> None:
        """Ends a request that nobody reads any more. Its place is free again when the server has confirmed."""
        opened.abandon()
        if opened.handle in self._requests:
            self._send(cancel=session_pb2.SessionCancel(handles=[opened.handle]))

    def finish(self) -> None:
        """No more requests: the stream is closed from our side when the open ones are done."""
        self._is_draining = True
        self._room.release()
        self._half_close_when_idle()

    def _half_close_when_idle(self) -> None:
        # Not before, since a cancel could not be sent any more.
        if self._is_draining and not self._requests:
            self._outbox.put_nowait(None)

    async def _converse(self, call: Any) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = [
                    tasks.create_task(self._write(call), name="session/write"),
                    tasks.create_task(self._watch(), name="session/watch"),
                ]
                with errors_of(self._target):
                    await self._read(call)
                for helper in helpers:
                    helper.cancel()
        except ExceptionGroup as group:
            known = group.subgroup(LoraplexError)
            raise (known or group).exceptions[0] from None

    # --- writing ---

    def _send(self, **frame: Any) -> None:
        if self._error is None:
            self._outbox.put_nowait(session_pb2.SessionRequest(**frame))

    async def _write(self, call: Any) -> None:
        first = session_pb2.SessionOpen(initial_token_credit=TOKEN_WINDOW)
        try:
            await call.write(session_pb2.SessionRequest(open=first))
            while (frame := await self._outbox.get()) is not None:
                await call.write(frame)
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.RpcError):
            # The call is over; the reader learns why.
            return

    # --- reading ---

    async def _read(self, call: Any) -> None:
        while (frame := await call.read()) is not grpc.aio.EOF:
            self._num_missed = 0
            kind = frame.WhichOneof("frame")
            handler = getattr(self, f"_on_{kind}", None)
            # A frame of a newer server is none of ours; heartbeats and pongs have done their work by coming.
            if handler is not None:
                handler(getattr(frame, kind))

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._opened.wait()
        except TimeoutError:
            message = f"{self._target} did not open the session within {OPEN_TIMEOUT_S:g} s"
            raise Unavailable(message, reason="SESSION_NOT_OPENED") from None
        # Counts ticks and not time: after a pause of our own process one tick is missed, not three.
        while self._num_missed < MISSED_HEARTBEATS:
            await asyncio.sleep(self._heartbeat_s)
            self._num_missed += 1
        message = f"{self._target} sent no heartbeat for {MISSED_HEARTBEATS * self._heartbeat_s:g} s"
        raise Unavailable(message, reason="HEARTBEAT_LOST")

    def _on_opened(self, frame: session_pb2.SessionOpened) -> None:
        if frame.HasField("heartbeat"):
            self._heartbeat_s = max(0.01, seconds(frame.heartbeat))
        for _ in range(frame.max_in_flight):
            self._room.release()
        self._opened.set()

    def _on_started(self, frame: session_pb2.SessionStarted) -> None:
        if opened := self._requests.get(frame.handle):
            opened.start(frame.prompt)

    def _on_tokens(self, frame: session_pb2.TokenBatch) -> None:
        for delta in frame.deltas:
            self._num_uncredited += delta.num_tokens or len(delta.token_ids)
            if opened := self._requests.get(delta.handle):
                self._add(opened, delta)
        if self._num_uncredited >= TOKEN_WINDOW // 2:
            self._send(credit=session_pb2.TokenCredit(num_tokens=self._num_uncredited))
            self._num_uncredited = 0

    def _add(self, opened: OpenRequest, delta: generation_pb2.SequenceDelta) -> None:
        try:
            opened.add(delta)
        except LoraplexError as broken:
            self._send(cancel=session_pb2.SessionCancel(handles=[opened.handle]))
            self._close(opened, broken)
            return
        if opened.is_complete:
            self._close(opened, None)

    def _on_rejected(self, frame: session_pb2.SessionRejected) -> None:
        if opened := self._requests.get(frame.handle):
            self._close(opened, status.error_from_pb(frame.error))

    def _on_go_away(self, frame: session_pb2.GoAway) -> None:
        del frame
        self.finish()

    def _close(self, opened: OpenRequest, error: LoraplexError | None) -> None:
        # Room comes back with each request that ends, never from SubmitCredit: what counts is how many are open at
        # once, and the server counts the same.
        del self._requests[opened.handle]
        self._room.release()
        if error is not None:
            opened.fail(error)
        self._half_close_when_idle()

    def _end(self, error: LoraplexError) -> None:
        self._error = error
        for opened in self._requests.values():
            opened.fail(error)
        self._requests.clear()
        self._room.release()
