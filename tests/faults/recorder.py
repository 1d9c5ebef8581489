"""Clients that write down what they see: one call a stream, or many streams over one session."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Self

import grpc
from grpc_status import rpc_status

from loraplex.v1 import (
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    sampling_pb2,
    session_pb2,
)
from loraplex_contract import status
from tests.faults.history import Accepted, Frame, History, Started, Submission, Terminal, Tokens

STREAM_TIMEOUT_S = 180.0
"""A stream that has not ended by then ends DEADLINE_EXCEEDED, which no checker lets pass."""


def to_pb(submission: Submission) -> generation_pb2.SubmitRequest:
    """Exactly ``max_tokens`` tokens, whatever they are."""
    pb = generation_pb2.SubmitRequest(
        text=submission.prompt,
        sampling=sampling_pb2.SamplingParams(
            temperature=submission.temperature, top_k=submission.top_k, seed=submission.seed
        ),
        stop=sampling_pb2.StopCriteria(max_tokens=submission.max_tokens, ignore_eos=True),
    )
    pb.scheduling.timeout.FromSeconds(int(STREAM_TIMEOUT_S))
    if submission.adapter is not None:
        pb.adapter.name = submission.adapter
    return pb


class Recorder:
    """The frames of one stream, stamped as they come."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._submitted_ns = time.monotonic_ns()
        self._frames: list[Frame] = []
        self.is_over = asyncio.Event()

    def history(self) -> History:
        return History(submission=self._submission, submitted_ns=self._submitted_ns, frames=tuple(self._frames))

    def accept(self) -> None:
        self._frames.append(Accepted(at_ns=time.monotonic_ns()))

    def start(self, prompt: generation_pb2.PromptInfo) -> None:
        adapters = tuple((adapter.name, adapter.digest) for adapter in prompt.adapters)
        self._frames.append(Started(at_ns=time.monotonic_ns(), adapters=adapters, seed=prompt.seed))

    def take(self, delta: generation_pb2.SequenceDelta) -> None:
        now_ns = time.monotonic_ns()
        if delta.num_tokens or delta.token_ids or delta.text:
            tokens = Tokens(
                at_ns=now_ns,
                first_token=delta.first_token,
                token_ids=tuple(delta.token_ids),
                num_tokens=delta.num_tokens,
                text=delta.text,
            )
            self._frames.append(tokens)
        if delta.HasField("finish"):
            self._end(delta.finish, now_ns)

    def fail(self, reason: str, error_reason: str) -> None:
        self._frames.append(Terminal(at_ns=time.monotonic_ns(), reason=reason, error_reason=error_reason))
        self.is_over.set()

    def _end(self, finish: generation_pb2.Finish, now_ns: int) -> None:
        terminal = Terminal(
            at_ns=now_ns,
            reason=generation_pb2.FinishReason.Name(finish.reason),
            error_reason=finish.error.reason,
            num_output_tokens=finish.usage.num_output_tokens,
            num_recomputed_tokens=finish.usage.num_recomputed_tokens,
        )
        self._frames.append(terminal)
        self.is_over.set()


class CallClient:
    """Each stream is a SubmitStream call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)

    async def run(self, submission: Submission) -> Recorder:
        """Returns when the call has ended: nothing can come any more."""
        recorder = Recorder(submission)
        request = inference_pb2.SubmitStreamRequest(request=to_pb(submission))
        try:
            async for response in self._stub.SubmitStream(request, timeout=STREAM_TIMEOUT_S):
                match response.WhichOneof("event"):
                    case "accepted":
                        recorder.accept()
                    case "prompt":
                        recorder.start(response.prompt)
                    case "delta":
                        recorder.take(response.delta)
        except grpc.aio.AioRpcError as error:
            recorder.fail(error.code().name, _reason_of(error))
        return recorder


def _reason_of(error: grpc.aio.AioRpcError) -> str:
    pb = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what it reads
    return status.error_from_status(pb).reason if pb is not None else ""


class SessionClient:
    """All streams share one session. Frames are recorded to its end, also those for streams that are over."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self._call = stub.Session()
        self._recorders: dict[int, Recorder] = {}
        self._write_lock = asyncio.Lock()
        self.num_strange_frames = 0
        """For handles that nobody submitted."""

    async def open(self) -> Self:
        await self._write(open=session_pb2.SessionOpen())
        response = await self._call.read()
        assert response.WhichOneof("frame") == "opened", response
        return self

    async def run(self, submission: Submission) -> Recorder:
        """Returns at the terminal; read the history once the session has been closed."""
        handle = len(self._recorders) + 1
        recorder = self._recorders[handle] = Recorder(submission)
        await self._write(submit=session_pb2.SessionSubmit(handle=handle, request=to_pb(submission)))
        await recorder.is_over.wait()
        return recorder

    async def read(self) -> None:
        """Until the server has ended the session; then whatever is still open has ended with it."""
        while isinstance(response := await self._call.read(), session_pb2.SessionResponse):
            self._take(response)
        code = (await self._call.code()).name
        for recorder in self._recorders.values():
            if not recorder.is_over.is_set():
                recorder.fail(code, "")

    async def close(self) -> None:
        """No more streams; the server ends the session when those that run have ended."""
        async with self._write_lock:
            await self._call.done_writing()

    async def _write(self, **frame: Any) -> None:
        async with self._write_lock:
            await self._call.write(session_pb2.SessionRequest(**frame))

    def _take(self, response: session_pb2.SessionResponse) -> None:
        match response.WhichOneof("frame"):
            case "accepted":
                for recorder in self._of(response.accepted.handle):
                    recorder.accept()
            case "started":
                for recorder in self._of(response.started.handle):
                    recorder.start(response.started.prompt)
            case "tokens":
                for delta in response.tokens.deltas:
                    for recorder in self._of(delta.handle):
                        recorder.take(delta)
            case "rejected":
                for recorder in self._of(response.rejected.handle):
                    recorder.fail("REJECTED", response.rejected.error.reason)

    def _of(self, handle: int) -> Iterator[Recorder]:
        if handle in self._recorders:
            yield self._recorders[handle]
        else:
            self.num_strange_frames += 1
