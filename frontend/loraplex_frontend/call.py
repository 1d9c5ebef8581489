"""One request in a call of its own: Submit gathers the whole answer, SubmitStream sends it as it comes."""

import asyncio
from typing import Any

from loraplex.v1 import generation_pb2, inference_pb2
from loraplex_contract.errors import LoraplexError, ResourceExhausted
from loraplex_frontend import convert
from loraplex_frontend.delta import Delta
from loraplex_frontend.generation import Generation
from loraplex_frontend.open_calls import OpenCalls
from loraplex_frontend.outbox import Outbox, Taken
from loraplex_frontend.request import Coalescing
from loraplex_frontend.request_log import log_end
from loraplex_frontend.submission import Submission


class Call:
    """The reader of one request (``generation.Reader``).

    Args:
        is_whole: nothing is taken from the outbox before the end; its cap bounds the answer.
    """

    def __init__(
        self,
        *,
        submission: Submission,
        calls: OpenCalls,
        tenant: str,
        coalescing: Coalescing,
        max_bytes: int,
        is_whole: bool,
    ) -> None:
        self.outbox = Outbox(coalescing=coalescing, credit=None, max_bytes=max_bytes)
        self._submission = submission
        self._calls = calls
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._is_whole = is_whole
        self._info = generation_pb2.PromptInfo()
        self._generation: Generation | None = None
        self._error: LoraplexError | None = None
        self._is_over = asyncio.Event()

    async def submit(self, request: generation_pb2.SubmitRequest, context: Any) -> inference_pb2.SubmitResponse:
        """The whole answer. Raises LoraplexError."""
        self._calls.add(self)
        try:
            generation = await self._start(request, context)
            await self._is_over.wait()
            self._raise_error(generation)
            return self._answer(generation)
        finally:
            self._end()

    async def stream(self, request: generation_pb2.SubmitRequest, context: Any) -> None:
        """Writes every event to ``context``. Raises LoraplexError where the request fails."""
        self._calls.add(self)
        clock = asyncio.get_running_loop().time
        try:
            generation = await self._start(request, context)
            while not self.outbox.is_done:
                taken = self.outbox.take(clock())
                await self._write(context, taken)
                self._raise_error(generation)
                if not taken.frames and not taken.deltas:
                    await self.outbox.wait(taken.wake_at)
            # A rejection closes the outbox and puts nothing into it.
            self._raise_error(generation)
        finally:
            self._end()

    async def _start(self, request: generation_pb2.SubmitRequest, context: Any) -> Generation:
        self._submission.count_received()
        try:
            self._generation = generation = await self._submission.start(
                request, tenant=self._tenant, reader=self, time_left_s=context.time_remaining()
            )
        except asyncio.CancelledError:
            self._submission.count_refused(self._tenant, None)
            raise
        return generation

    def _end(self) -> None:
        """Whatever happened, also to the client: nothing runs on upstream."""
        self._calls.discard(self)
        if self._generation is not None:
            self._generation.abandon()

    def _raise_error(self, generation: Generation) -> None:
        error = self._error or generation.error
        if error is not None:
            raise error

    async def _write(self, context: Any, taken: Taken) -> None:
        for frame in taken.frames:
            await context.write(frame)
        for delta in taken.deltas:
            if not _is_failure(delta):
                response = inference_pb2.SubmitStreamResponse()
                convert.fill_delta(response.delta, delta)
                await context.write(response)

    def _answer(self, generation: Generation) -> inference_pb2.SubmitResponse:
        response = inference_pb2.SubmitResponse(request_id=generation.request_id, prompt=self._info)
        for sequence in generation.sequences:
            delta = sequence.take(None)
            output = response.outputs.add(index=delta.index, text=delta.text, finish=delta.finish)
            output.token_ids.extend(delta.token_ids)
            for entry in delta.logprobs:
                convert.fill_logprobs(output.logprobs.add(), entry)
        return response

    # --- OpenCall ---

    def go_away(self, time_left_s: float) -> None:
        """A single call is told by its end."""

    def fail(self, error: LoraplexError) -> None:
        if self._generation is not None:
            self._generation.fail(error)

    # --- generation.Reader ---

    def on_accepted(self, generation: Generation, queue_position: int) -> None:
        if not self._is_whole:
            accepted = generation_pb2.Accepted(request_id=generation.request_id, queue_position=queue_position)
            self.outbox.put(inference_pb2.SubmitStreamResponse(accepted=accepted))

    def on_started(self, generation: Generation, info: generation_pb2.PromptInfo) -> None:
        self._info = info
        if not self._is_whole:
            self.outbox.put(inference_pb2.SubmitStreamResponse(prompt=info), info.ByteSize())

    def on_rejected(self, generation: Generation, error: LoraplexError) -> None:
        self._finish(generation)

    def on_ended(self, generation: Generation) -> None:
        self._finish(generation)

    def on_overflow(self) -> None:
        if self._is_whole and self._error is None:
            message = f"the answer is larger than {self._max_bytes} bytes: use SubmitStream, or ask for less"
            self._error = ResourceExhausted(message, reason="RESPONSE_TOO_LARGE")
        if self._generation is not None:
            self._generation.overflow(self._error)

    def _finish(self, generation: Generation) -> None:
        log_end(generation, tenant=self._tenant)
        self.outbox.close()
        self._is_over.set()


def _is_failure(delta: Delta) -> bool:
    """The finish of a failed request is the status of the call instead."""
    return delta.finish is not None and delta.finish.reason == generation_pb2.FINISH_REASON_ERROR
