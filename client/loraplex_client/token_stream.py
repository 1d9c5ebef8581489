"""The stream of one request's deltas."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from loraplex_client.delta import Delta, TokenLogprobs
from loraplex_client.finish import Finish
from loraplex_client.open_request import OpenRequest
from loraplex_client.output import Output, PromptInfo, SequenceOutput
from loraplex_client.session import Session
from loraplex_contract.errors import Internal

Submit = Callable[[], Awaitable[tuple[Session, OpenRequest]]]


class TokenStream(AsyncIterator[Delta]):
    """Yields the deltas of all sequences as they come; ends after the last finish; raises what ended the request.

    Closing it early (``aclose``, leaving ``async with``, or dropping the last reference) cancels the request on the
    server. For one reader, on one event loop.
    """

    # For __del__, should __init__ fail.
    _is_closed = True

    def __init__(self, request_id: str, num_sequences: int, submit: Submit) -> None:
        self.request_id = request_id
        self._submit = submit
        self._num_unfinished = num_sequences
        self._session: Session | None = None
        self._opened: OpenRequest | None = None
        self._loop = asyncio.get_running_loop()
        self._is_closed = False

    @property
    def prompt(self) -> PromptInfo | None:
        """Prompt length, seed and the adapter versions that answer: known by the first delta."""
        return self._opened.prompt if self._opened else None

    async def start(self) -> Self:
        """Submits the request now instead of at the first delta asked for."""
        if self._opened is None and not self._is_closed:
            self._session, self._opened = await self._submit()
        return self

    async def take(self) -> Delta | None:
        """The next delta; None after the last."""
        if self._is_closed:
            return None
        await self.start()
        assert self._opened is not None
        delta = await self._guarded_take(self._opened)
        if delta.finish is not None:
            self._num_unfinished -= 1
            self._is_closed = self._num_unfinished == 0
        return delta

    async def _guarded_take(self, opened: OpenRequest) -> Delta:
        # Also a cancelled wait ends the request: nobody would read its tokens.
        try:
            return await opened.take()
        except BaseException:
            self._close()
            raise

    async def collect(self) -> Output:
        """Reads to the end."""
        parts: dict[int, list[Delta]] = {}
        async for delta in self:
            parts.setdefault(delta.index, []).append(delta)
        if self.prompt is None:
            raise Internal("the server sent tokens without saying what it made of the prompt", reason="NO_PROMPT_INFO")
        sequences = tuple(_joined(index, parts[index]) for index in sorted(parts))
        return Output(request_id=self.request_id, prompt=self.prompt, sequences=sequences)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        delta = await self.take()
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def aclose(self) -> None:
        """Cancels the request if it still runs. Idempotent."""
        self._close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if not self._is_closed and self._session is not None and self._opened is not None:
            self._session.cancel(self._opened)
        self._is_closed = True

    def __del__(self) -> None:
        # ``break`` out of ``async for`` drops the stream without a word. The collector may run on any thread.
        if (
            not self._is_closed
            and self._session is not None
            and self._opened is not None
            and not self._loop.is_closed()
        ):
            self._loop.call_soon_threadsafe(self._session.cancel, self._opened)


def _joined(index: int, deltas: list[Delta]) -> SequenceOutput:
    logprobs: list[TokenLogprobs] = [entry for delta in deltas for entry in delta.logprobs]
    finish: Finish | None = deltas[-1].finish
    assert finish is not None
    return SequenceOutput(
        index=index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish=finish,
        logprobs=tuple(logprobs),
    )
