"""One running request: what the scheduler says about it goes in, news for its reader come out."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any, Final, Protocol

from loraplex.v1 import generation_pb2
from loraplex.worker.v1 import frontend_link_pb2
from loraplex_contract import status
from loraplex_contract.errors import Internal, LoraplexError, ResourceExhausted
from loraplex_frontend import convert
from loraplex_frontend.outbox import Outbox
from loraplex_frontend.request import GenerationRequest
from loraplex_frontend.request_metrics import RequestRecord
from loraplex_frontend.sequence import Sequence
from loraplex_frontend.text.decode_table import DecodeTable
from loraplex_frontend.text.stop_strings import StopStrings


class Upstream(Protocol):
    """What a request asks of the scheduler."""

    def stop(self, handle: int, index: int, num_tokens: int) -> None: ...

    def cancel(self, handle: int) -> None: ...

    def forget(self, handle: int) -> None: ...


class Reader(Protocol):
    """Who gets a request's news: a session or a single call. ``outbox`` gets the deltas."""

    outbox: Outbox

    def on_accepted(self, generation: "Generation", queue_position: int) -> None: ...

    def on_started(self, generation: "Generation", info: generation_pb2.PromptInfo) -> None: ...

    def on_rejected(self, generation: "Generation", error: LoraplexError) -> None: ...

    def on_ended(self, generation: "Generation") -> None: ...

    def on_overflow(self) -> None: ...


class Generation:
    """The n sequences of one request between submission and the last finish.

    Every method is called on the event loop, and none waits. The terminal is told to the reader exactly once: by
    ``on_rejected``, or by ``on_ended`` after each sequence's finish is in the outbox.
    """

    def __init__(
        self,
        *,
        handle: int,
        reader_handle: int,
        request_id: str,
        request: GenerationRequest,
        num_prompt_tokens: int,
        model_name: str,
        eos_token_ids: tuple[int, ...],
        table: DecodeTable,
        reader: Reader,
        upstream: Upstream,
        clock: Callable[[], float],
        record: RequestRecord | None = None,
    ) -> None:
        self.handle: Final = handle
        """On the link."""
        self.reader_handle: Final = reader_handle
        """In the session; 0 in a call of its own."""
        self.request_id: Final = request_id
        self.num_prompt_tokens: Final = num_prompt_tokens
        self.is_accepted = False
        self.is_over = False
        self.error: LoraplexError | None = None
        """What ended the request as a whole or its first failed sequence."""
        self._request = request
        self._model_name = model_name
        self._eos_token_ids = frozenset(eos_token_ids)
        self._own_stop_ids = frozenset(request.stop.token_ids)
        self._reader = reader
        self._upstream = upstream
        self._clock = clock
        self._record = record
        self._info: generation_pb2.PromptInfo | None = None
        stops = StopStrings(request.stop.strings) if request.stop.strings else None
        self.sequences: Final = tuple(
            Sequence(handle=reader_handle, index=index, request=request, table=table, stops=stops)
            for index in range(request.sampling.num_sequences)
        )
        self._num_unfinished = len(self.sequences)

    @property
    def num_output_tokens(self) -> int:
        return sum(sequence.num_received for sequence in self.sequences)

    # --- from the link ---

    def on_accepted(self, queue_position: int) -> None:
        if not self.is_over and not self.is_accepted:
            self.is_accepted = True
            self._reader.on_accepted(self, queue_position)

    def on_rejected(self, error: LoraplexError) -> None:
        if not self.is_over:
            self.error = error
            self._close()
            self._reader.on_rejected(self, error)

    def on_started(self, started: frontend_link_pb2.LinkStarted) -> None:
        if not self.is_over:
            if self._record is not None:
                self._record.on_started([adapter.name for adapter in started.adapters])
            self._info = convert.prompt_info(started, num_prompt_tokens=self.num_prompt_tokens, model=self._model_name)
            self._reader.on_started(self, self._info)

    def on_prompt_logprobs(self, entries: SequenceOf[Any]) -> None:
        """A second PromptInfo: the first went out before anything was computed."""
        if self.is_over or self._info is None or self._request.output.prompt_logprobs is None:
            return
        info = generation_pb2.PromptInfo()
        info.CopyFrom(self._info)
        convert.add_logprobs(info, entries)
        self._reader.on_started(self, info)
        self._check_overflow()

    def on_tokens(self, index: int, first_token: int, token_ids: SequenceOf[int], logprobs: SequenceOf[Any]) -> None:
        """The next tokens of one sequence. A gap or a repeat can only be a bug, and ends the request."""
        if self.is_over:
            return
        sequence = self.sequences[index] if index < len(self.sequences) else None
        if sequence is None or (first_token != sequence.num_received and not sequence.is_over):
            self.fail(Internal("the tokens of this request did not come in order", reason="TOKEN_ORDER"))
            return
        if sequence.is_over:
            return
        num_bytes, now_s = sequence.num_bytes, self._clock()
        sequence.push(token_ids, logprobs if self._request.output.top_logprobs is not None else (), now_s)
        self._reader.outbox.notify(sequence, sequence.num_bytes - num_bytes)
        if self._record is not None:
            self._record.on_tokens(index, sequence.num_received - first_token, now_s)
        if sequence.stop_string is not None:
            self._upstream.stop(self.handle, index, sequence.num_received)
        self._check_overflow()

    def on_ended(self, ended: frontend_link_pb2.LinkEnded) -> None:
        """The scheduler's terminal for one sequence."""
        if self.is_over or ended.index >= len(self.sequences):
            return
        sequence = self.sequences[ended.index]
        finish = convert.finish(ended, eos_token_ids=self._eos_token_ids, own_stop_ids=self._own_stop_ids)
        self._end_sequence(sequence, finish, status.error_from_pb(ended.error) if ended.HasField("error") else None)
        self._close_if_finished()

    def on_lost(self, error: LoraplexError) -> None:
        """The link is gone, and with it everything that ran on it."""
        self._fail(error)

    # --- from this side ---

    def cancel(self) -> None:
        """Asks the scheduler; the finish comes as its answer."""
        if not self.is_over:
            self._upstream.cancel(self.handle)

    def fail(self, error: LoraplexError) -> None:
        """Ends the request here and now with an error, and upstream as soon as it hears."""
        if not self.is_over:
            self._upstream.cancel(self.handle)
            self._fail(error)

    def overflow(self, error: LoraplexError | None = None) -> None:
        """The reader is past its cap: what waits is given up, and the request with it, for being slow or as it says."""
        if self.is_over:
            return
        for sequence in self.sequences:
            if not sequence.is_ended:
                num_bytes = sequence.num_bytes
                sequence.drop_pending()
                self._reader.outbox.notify(sequence, -num_bytes)
        message = "the reader took the output too slowly: read faster, or give token credit and use several sessions"
        self.fail(error or ResourceExhausted(message, reason="SLOW_CONSUMER", retry_delay_s=1.0))

    def abandon(self) -> None:
        """Nobody reads any more."""
        if not self.is_over:
            self._upstream.cancel(self.handle)
            self._close()

    # --- the end ---

    def _fail(self, error: LoraplexError) -> None:
        if self.is_over:
            return
        if not self.is_accepted:
            self.error = error
            self._close()
            self._reader.on_rejected(self, error)
            return
        for sequence in self.sequences:
            if not sequence.is_ended:
                self._end_sequence(sequence, self._error_finish(sequence, error), error)
        self._close_if_finished()

    def _error_finish(self, sequence: Sequence, error: LoraplexError) -> generation_pb2.Finish:
        return convert.error_finish(
            error, num_prompt_tokens=self.num_prompt_tokens, num_output_tokens=sequence.num_received
        )

    def _end_sequence(
        self, sequence: Sequence, finish: generation_pb2.Finish, error: LoraplexError | None = None
    ) -> None:
        if sequence.is_ended:
            return
        num_bytes = sequence.num_bytes
        sequence.end(finish)
        if sequence.stop_string is not None:
            finish = convert.stop_string_finish(
                sequence.stop_string,
                finish,
                num_prompt_tokens=self.num_prompt_tokens,
                num_output_tokens=sequence.num_received,
            )
            sequence.replace_finish(finish)
        elif error is not None and self.error is None:
            self.error = error
        if self._record is not None:
            self._record.on_sequence_end(finish)
        self._num_unfinished -= 1
        self._reader.outbox.notify(sequence, sequence.num_bytes - num_bytes)

    def _close_if_finished(self) -> None:
        if self._num_unfinished == 0 and not self.is_over:
            self._close()
            self._reader.on_ended(self)

    def _close(self) -> None:
        self.is_over = True
        self._upstream.forget(self.handle)
        if self._record is not None:
            self._record.on_over(
                error=self.error,
                is_abandoned=self._num_unfinished > 0,
                num_prompt_tokens=self.num_prompt_tokens,
                num_output_tokens=self.num_output_tokens,
                now_s=self._clock(),
            )

    def _check_overflow(self) -> None:
        if self._reader.outbox.is_over_cap:
            self._reader.on_overflow()
