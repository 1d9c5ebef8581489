"""One Session call: many requests, one stream. The contract is at the top of session.proto, by number.

The reader takes the client's frames, a task for each submit prepares it, and one writer sends. Everything runs in one
task group, so that nothing outlives the call.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from loraplex.v1 import generation_pb2, session_pb2
from loraplex_contract import status
from loraplex_contract.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    LoraplexError,
    ResourceExhausted,
    Unavailable,
)
from loraplex_contract.interceptor import tell_apart
from loraplex_frontend import convert
from loraplex_frontend.generation import Generation
from loraplex_frontend.handle_set import HandleSet
from loraplex_frontend.open_calls import OpenCalls
from loraplex_frontend.outbox import Outbox, Taken
from loraplex_frontend.request_log import log_end
from loraplex_frontend.scheduler_link import SchedulerLink
from loraplex_frontend.session_settings import SessionSettings
from loraplex_frontend.submission import Submission
from loraplex_frontend.validate import check_stream_options

_HEARTBEAT_MARGIN: Final = 0.8
"""Sent somewhat earlier than promised, so that a busy moment breaks no promise."""


class Session:
    """The state of one stream, and the reader of all its requests (``generation.Reader``)."""

    outbox: Outbox

    def __init__(
        self, *, submission: Submission, link: SchedulerLink, calls: OpenCalls, settings: SessionSettings, tenant: str
    ) -> None:
        self._submission = submission
        self._link = link
        self._calls = calls
        self._settings = settings
        self._tenant = tenant
        self._running: dict[int, Generation] = {}
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._used_handles = HandleSet(settings.max_used_handles)
        self._num_freed = 0
        self._is_draining = False
        self._is_half_closed = False
        self._clock = asyncio.get_running_loop().time

    async def run(self, requests: AsyncIterator[session_pb2.SessionRequest], context: Any) -> None:
        """From Open to the end of the stream.

        Raises:
            InvalidArgument: a frame that breaks the contract (PROTOCOL_VIOLATION) or Open's own fields.
        """
        await self._open(requests, context)
        self._calls.add(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(requests, tasks), name="session/read")
                await self._write(context)
                reader.cancel()
        finally:
            self._calls.discard(self)
            for generation in list(self._running.values()):
                generation.abandon()

    # --- OpenCall ---

    def go_away(self, time_left_s: float) -> None:
        if not self._is_draining:
            self._is_draining = True
            reason = status.error_to_pb(_draining())
            frame = session_pb2.GoAway(time_left=convert.duration(time_left_s), reason=reason)
            self.outbox.put(session_pb2.SessionResponse(go_away=frame))
            self._close_if_idle()

    def fail(self, error: LoraplexError) -> None:
        for generation in list(self._running.values()):
            generation.fail(error)
        for task in self._preparing.values():
            task.cancel()
        self.outbox.close()

    # --- reading ---

    async def _open(self, requests: AsyncIterator[session_pb2.SessionRequest], context: Any) -> None:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("frame") != "open":
            raise _violation("the first frame of a session must be open")
        credit = first.open.initial_token_credit if first.open.HasField("initial_token_credit") else None
        self.outbox = Outbox(
            coalescing=check_stream_options(first.open.stream),
            credit=credit,
            max_bytes=self._settings.max_stream_bytes,
        )
        opened = session_pb2.SessionOpened(
            max_in_flight=self._settings.max_in_flight, heartbeat=convert.duration(self._settings.heartbeat_s)
        )
        await context.write(session_pb2.SessionResponse(opened=opened))

    async def _read(self, requests: AsyncIterator[session_pb2.SessionRequest], tasks: asyncio.TaskGroup) -> None:
        async for request in requests:
            match request.WhichOneof("frame"):
                case "submit":
                    self._take_submit(request.submit, tasks)
                case "cancel":
                    self._take_cancel(request.cancel)
                case "credit":
                    self.outbox.add_credit(request.credit.num_tokens)
                case "ping":
                    pong = session_pb2.Pong(nonce=request.ping.nonce)
                    self.outbox.put(session_pb2.SessionResponse(pong=pong))
                case "open":
                    raise _violation("open may come only once, as the first frame")
                case _:
                    raise _violation("a frame without content, or of a kind that this server does not know")
            # A client that sends without reading is not read from either.
            await self.outbox.wait_for_room()
        # A half-close, or a client that is gone: then the call's task is cancelled in a moment.
        self._is_half_closed = True
        self._close_if_idle()

    def _take_submit(self, submit: session_pb2.SessionSubmit, tasks: asyncio.TaskGroup) -> None:
        handle, request_id = submit.handle, submit.request.request_id
        self._submission.count_received()
        try:
            self._check_handle(handle)
        except LoraplexError as error:
            self._refuse(handle, request_id, error)
            self._free()
            return
        if self._num_open >= self._settings.max_in_flight:
            message = f"the session has its limit of {self._settings.max_in_flight} requests open: wait for credit"
            self._refuse(handle, request_id, ResourceExhausted(message, reason="SESSION_FULL", retry_delay_s=0.1))
            return
        task = tasks.create_task(self._prepare(handle, submit.request), name=f"session/submit/{handle}")
        task.add_done_callback(lambda task: self._prepared(handle, request_id, task))
        self._preparing[handle] = task

    def _check_handle(self, handle: int) -> None:
        if handle == 0:
            raise InvalidArgument("handle: must not be 0", reason="HANDLE_INVALID")
        if self._is_draining or self._submission.is_draining:
            raise _draining()
        if self._used_handles.is_full:
            message = "the session has seen too many handles out of order: open a new one, and count handles up from 1"
            raise ResourceExhausted(message, reason="SESSION_EXHAUSTED")
        if not self._used_handles.add(handle):
            raise AlreadyExists(f"handle: {handle} was used before in this session", reason="HANDLE_IN_USE")

    async def _prepare(self, handle: int, request: generation_pb2.SubmitRequest) -> None:
        try:
            self._running[handle] = await self._submission.start(
                request, tenant=self._tenant, reader=self, reader_handle=handle
            )
        except Exception as error:
            self._reject(handle, request.request_id, tell_apart(error))
            self._free()
        finally:
            self._preparing.pop(handle, None)
            self._close_if_idle()

    def _prepared(self, handle: int, request_id: str, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs none of its own code, so this is done from outside."""
        if task.cancelled():
            self._preparing.pop(handle, None)
            error = _draining() if self._submission.is_draining else Cancelled("cancelled before it was queued")
            self._refuse(handle, request_id, error)
            self._free()
            self._close_if_idle()

    def _take_cancel(self, cancel: session_pb2.SessionCancel) -> None:
        """Cancelled where it is: on its way to the scheduler by the task, later by the scheduler."""
        handles = [*self._running, *self._preparing] if cancel.all else cancel.handles
        for handle in handles:
            if generation := self._running.get(handle):
                generation.cancel()
            elif preparing := self._preparing.get(handle):
                preparing.cancel()

    # --- generation.Reader ---

    def on_accepted(self, generation: Generation, queue_position: int) -> None:
        accepted = generation_pb2.Accepted(request_id=generation.request_id, queue_position=queue_position)
        frame = session_pb2.SessionAccepted(handle=generation.reader_handle, accepted=accepted)
        self.outbox.put(session_pb2.SessionResponse(accepted=frame))

    def on_started(self, generation: Generation, info: generation_pb2.PromptInfo) -> None:
        frame = session_pb2.SessionStarted(handle=generation.reader_handle, prompt=info)
        self.outbox.put(session_pb2.SessionResponse(started=frame), info.ByteSize())

    def on_rejected(self, generation: Generation, error: LoraplexError) -> None:
        self._running.pop(generation.reader_handle, None)
        self._reject(generation.reader_handle, generation.request_id, error)
        self._ended(generation)

    def on_ended(self, generation: Generation) -> None:
        self._running.pop(generation.reader_handle, None)
        self._ended(generation)

    def on_overflow(self) -> None:
        for generation in list(self._running.values()):
            generation.overflow()

    def _ended(self, generation: Generation) -> None:
        log_end(generation, tenant=self._tenant)
        self._free()
        self._close_if_idle()

    # --- the client's credit for requests ---

    @property
    def _num_open(self) -> int:
        return len(self._running) + len(self._preparing)

    def _free(self) -> None:
        """One more request may be opened; the writer says so with what it sends next."""
        self._num_freed += 1

    def _refuse(self, handle: int, request_id: str, error: LoraplexError) -> None:
        """A request that never came to be one elsewhere."""
        self._submission.count_refused(self._tenant, error)
        self._reject(handle, request_id, error)

    def _reject(self, handle: int, request_id: str, error: LoraplexError) -> None:
        frame = session_pb2.SessionRejected(handle=handle, request_id=request_id, error=status.error_to_pb(error))
        self.outbox.put(session_pb2.SessionResponse(rejected=frame))

    def _close_if_idle(self) -> None:
        if (self._is_half_closed or self._is_draining) and not self._num_open:
            self.outbox.close()

    # --- writing ---

    async def _write(self, context: Any) -> None:
        interval_s = self._settings.heartbeat_s * _HEARTBEAT_MARGIN
        next_heartbeat = self._clock() + interval_s
        while not self.outbox.is_done:
            now = self._clock()
            taken = self.outbox.take(now)
            if now >= next_heartbeat:
                taken.frames.append(self._heartbeat())
                next_heartbeat = now + interval_s
            await self._send(context, taken)
            if not taken.frames and not taken.deltas:
                await self.outbox.wait(min(next_heartbeat, taken.wake_at or next_heartbeat))

    async def _send(self, context: Any, taken: Taken) -> None:
        for frame in taken.frames:
            await context.write(frame)
        if taken.deltas:
            response = session_pb2.SessionResponse()
            response.tokens.step = self._link.turn
            add = response.tokens.deltas.add
            for delta in taken.deltas:
                convert.fill_delta(add(), delta)
            await context.write(response)
        if self._num_freed:
            freed, self._num_freed = self._num_freed, 0
            credit = session_pb2.SubmitCredit(num_requests=freed)
            await context.write(session_pb2.SessionResponse(credit=credit))

    def _heartbeat(self) -> session_pb2.SessionResponse:
        return session_pb2.SessionResponse(heartbeat=session_pb2.Heartbeat(num_open=self._num_open))


def _violation(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="PROTOCOL_VIOLATION")


def _draining() -> Unavailable:
    return Unavailable("this server is shutting down: open a session elsewhere", reason="DRAINING", retry_delay_s=1.0)
