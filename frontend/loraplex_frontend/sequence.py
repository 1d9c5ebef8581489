"""One sequence of a running request: its text so far, and what has yet to be sent."""

from collections.abc import Sequence as SequenceOf
from typing import Any, Final

from loraplex_frontend.delta import Delta
from loraplex_frontend.request import GenerationRequest
from loraplex_frontend.text.decode_table import DecodeTable
from loraplex_frontend.text.stop_strings import StopMatcher, StopStrings

_MAX_PARTS: Final = 64
_LOGPROB_BYTES: Final = 24
_ALTERNATIVE_BYTES: Final = 8


class Sequence:
    """Takes tokens in order, gives deltas out. What waits is merged, so it is never more than the output itself."""

    __slots__ = (
        "_detokenizer",
        "_finish",
        "_ids",
        "_is_finish_sent",
        "_logprobs",
        "_matcher",
        "_min_tokens",
        "_parts",
        "_wants_ids",
        "_wants_text",
        "first_pending",
        "handle",
        "index",
        "num_bytes",
        "num_received",
        "pending_since",
        "stop_string",
    )

    def __init__(
        self, *, handle: int, index: int, request: GenerationRequest, table: DecodeTable, stops: StopStrings | None
    ) -> None:
        self.handle = handle
        self.index = index
        self.num_received = 0
        """Tokens taken, up to and including the one that completed a stop string."""
        self.first_pending = 0
        """Index of the first token that has not been sent."""
        self.num_bytes = 0
        """Memory that waits to be sent, roughly."""
        self.pending_since = 0.0
        self.stop_string: str | None = None
        self._ids: list[int] = []
        self._parts: list[tuple[int, str]] = []
        """Text with the number of tokens after which it may be sent."""
        self._logprobs: list[Any] = []
        self._finish: Any = None
        self._is_finish_sent = False
        self._wants_ids = request.output.token_ids
        self._wants_text = request.output.text
        self._min_tokens = request.stop.min_tokens
        needs_text = self._wants_text or stops is not None
        skip = request.output.skip_special_tokens
        self._detokenizer = table.detokenizer(skip_special_tokens=skip) if needs_text else None
        include = request.stop.include_stop_string
        self._matcher = StopMatcher(stops, include_stop_string=include) if stops is not None else None

    # --- in ---

    def push(self, token_ids: SequenceOf[int], logprobs: SequenceOf[Any], now: float) -> None:
        """Takes the next tokens. After a stop string (``stop_string`` is set then) the rest is dropped."""
        if self.is_over:
            return
        if not self._ids:
            self.pending_since = now
        num_kept = len(token_ids)
        if self._matcher is not None:
            num_kept = self._push_matching(token_ids)
        else:
            self.num_received += num_kept
            if self._detokenizer is not None:
                self._add_text(self._detokenizer.push(token_ids))
        kept = token_ids if num_kept == len(token_ids) else token_ids[:num_kept]
        self._ids.extend(kept)
        self.num_bytes += 4 * num_kept
        if logprobs:
            self._add_logprobs(logprobs[:num_kept])

    def end(self, finish: Any) -> None:
        """No more tokens will come. What the text still holds back goes out with the finish."""
        if self._finish is not None:
            return
        self._flush_text()
        self._finish = finish

    def replace_finish(self, finish: Any) -> None:
        """Another reading of the end, before it is sent: the flushed text may have completed a stop string."""
        self._finish = finish

    def drop_pending(self) -> None:
        """Gives up what waits, for a reader that does not read."""
        self.first_pending = self.num_received
        self._ids, self._parts, self._logprobs, self.num_bytes = [], [], [], 0

    @property
    def is_over(self) -> bool:
        """Whether further tokens are of no interest."""
        return self._finish is not None or self.stop_string is not None

    @property
    def is_ended(self) -> bool:
        return self._finish is not None

    # --- out ---

    @property
    def num_pending(self) -> int:
        """Tokens that wait to be sent."""
        return len(self._ids)

    @property
    def has_news(self) -> bool:
        return bool(self._ids) or (self._finish is not None and not self._is_finish_sent)

    def take(self, max_tokens: int | None) -> Delta:
        """Up to ``max_tokens`` waiting tokens with their text; the finish comes with the last."""
        if max_tokens is None or max_tokens >= len(self._ids):
            return self._take_all()
        ids, self._ids = self._ids[:max_tokens], self._ids[max_tokens:]
        first, self.first_pending = self.first_pending, self.first_pending + max_tokens
        text = self._take_text(self.first_pending)
        logprobs, self._logprobs = self._logprobs[:max_tokens], self._logprobs[max_tokens:]
        self._recount()
        return Delta(self.handle, self.index, first, max_tokens, ids if self._wants_ids else (), text, logprobs, None)

    def _take_all(self) -> Delta:
        ids, self._ids = self._ids, []
        first, num_tokens = self.first_pending, len(ids)
        self.first_pending += num_tokens
        text = self._parts[0][1] if len(self._parts) == 1 else "".join(part for _, part in self._parts)
        logprobs, self._logprobs = self._logprobs, []
        self._parts = []
        self.num_bytes = 0
        self._is_finish_sent = self._finish is not None
        shown = ids if self._wants_ids else ()
        return Delta(self.handle, self.index, first, num_tokens, shown, text, logprobs, self._finish)

    # --- text ---

    def _push_matching(self, token_ids: SequenceOf[int]) -> int:
        """One token at a time, since a stop string ends the sequence at the token that completes it."""
        assert self._matcher is not None
        assert self._detokenizer is not None
        for position, token_id in enumerate(token_ids):
            self.num_received += 1
            text = self._detokenizer.push((token_id,))
            released = self._matcher.push(text, can_stop=self.num_received >= self._min_tokens)
            self._add_text(released.text)
            if released.stop_string is not None:
                self.stop_string = released.stop_string
                return position + 1
        return len(token_ids)

    def _flush_text(self) -> None:
        if self._detokenizer is None or self.stop_string is not None:
            return
        rest = self._detokenizer.flush()
        if self._matcher is not None:
            can_stop = self.num_received >= self._min_tokens
            released = self._matcher.push(rest, can_stop=can_stop)
            self.stop_string = released.stop_string
            rest = released.text + ("" if released.stop_string else self._matcher.flush())
        self._add_text(rest)

    def _add_text(self, text: str) -> None:
        if not text or not self._wants_text:
            return
        self.num_bytes += len(text)
        self._parts.append((self.num_received, text))
        if len(self._parts) > _MAX_PARTS:
            self._parts = [(self.num_received, "".join(part for _, part in self._parts))]

    def _take_text(self, num_sent: int) -> str:
        """Text may lag behind its tokens, never run ahead of them."""
        count = 0
        for after, _ in self._parts:
            if after > num_sent:
                break
            count += 1
        taken, self._parts = self._parts[:count], self._parts[count:]
        return "".join(part for _, part in taken)

    def _add_logprobs(self, logprobs: SequenceOf[Any]) -> None:
        self._logprobs.extend(logprobs)
        alternatives = sum(len(entry.top_logprobs) for entry in logprobs)
        self.num_bytes += len(logprobs) * _LOGPROB_BYTES + alternatives * _ALTERNATIVE_BYTES

    def _recount(self) -> None:
        text_bytes = sum(len(part) for _, part in self._parts)
        alternatives = sum(len(entry.top_logprobs) for entry in self._logprobs)
        logprob_bytes = len(self._logprobs) * _LOGPROB_BYTES + alternatives * _ALTERNATIVE_BYTES
        self.num_bytes = 4 * len(self._ids) + text_bytes + logprob_bytes
