"""From a ``SubmitRequest`` to a running generation: check, tokenise, resolve, wait for the link, send."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from loraplex.v1 import generation_pb2
from loraplex_contract import status
from loraplex_contract.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Internal,
    LoraplexError,
    ResourceExhausted,
    Unavailable,
)
from loraplex_frontend import convert
from loraplex_frontend.generation import Generation, Reader
from loraplex_frontend.model_folder import ModelFolder
from loraplex_frontend.request import AdapterPart, AdapterSource, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from loraplex_frontend.request_limits import RequestLimits
from loraplex_frontend.request_log import log_refused
from loraplex_frontend.request_metrics import CLIENT_GONE, RequestMetrics, RequestRecord
from loraplex_frontend.scheduler_link import SchedulerLink
from loraplex_frontend.text.chat_template import INLINE_CHARS, ChatTemplate, Conversation, RenderedChat
from loraplex_frontend.text.tokenizer import Tokenizer
from loraplex_frontend.validate import check_submit
from loraplex_frontend.validate_prompt import check_length

_LEAST_TIME_S: Final = 0.001


class SourceAdapters(Protocol):
    """Makes an adapter of a request's ``uri``."""

    async def adapter_of(self, tenant: str, source: AdapterSource) -> AdapterPart: ...


class _Preparation:
    """A request that is not yet known to the scheduler, so that only this frontend can cancel it."""

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope = scope
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self._scope.reschedule(asyncio.get_running_loop().time())


class Submission:
    """What all ways to submit share.

    Args:
        grace_s: how long a new request waits for a scheduler that is away.
        max_open: requests that this frontend has open at once, over all calls and sessions.
        max_timeout_s: the longest a request may take; the default for one without a timeout.
        metrics: counts requests; None where nobody asks.
    """

    def __init__(
        self,
        *,
        model: ModelFolder,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        link: SchedulerLink,
        sources: SourceAdapters,
        grace_s: float,
        max_open: int,
        max_prompt_bytes: int,
        max_timeout_s: float,
        metrics: RequestMetrics | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._link = link
        self._sources = sources
        self._grace_s = grace_s
        self._max_open = max_open
        self._max_prompt_bytes = max_prompt_bytes
        self._max_timeout_s: Final = max_timeout_s
        self._metrics = metrics
        self._preparing: dict[tuple[str, str], _Preparation] = {}
        self.is_draining = False

    @property
    def max_context_tokens(self) -> int:
        """What the connected workers hold; by the model's config while there is none."""
        of_workers = self._link.cluster.max_context_tokens
        return min(of_workers, self._model.max_context_tokens) if of_workers else self._model.max_context_tokens

    @property
    def num_open(self) -> int:
        return self._link.num_open + len(self._preparing)

    @property
    def num_preparing(self) -> int:
        return len(self._preparing)

    def count_received(self) -> None:
        """Each request once, before anything is looked at."""
        if self._metrics is not None:
            self._metrics.on_received()

    def count_refused(self, tenant: str, error: LoraplexError | None) -> None:
        """A received request that ``start`` was not called for, or was cancelled in; None = its client is gone."""
        if self._metrics is not None:
            outcome = CLIENT_GONE if error is None else (status.code_of(error).name, error.reason)
            self._metrics.on_refused(tenant, *outcome)

    def limits(self) -> RequestLimits:
        return RequestLimits(
            model_name=self._model.name,
            vocab_size=self._model.vocab_size,
            max_context_tokens=self.max_context_tokens,
            max_prompt_bytes=self._max_prompt_bytes,
            max_timeout_s=self._max_timeout_s,
            roles=self._template.roles,
            reserved_template_names=self._template.reserved_names,
        )

    async def start(
        self,
        pb: generation_pb2.SubmitRequest,
        *,
        tenant: str,
        reader: Reader,
        reader_handle: int = 0,
        time_left_s: float | None = None,
    ) -> Generation:
        """Returns when the request is on its way to the scheduler; the reader hears the rest.

        Args:
            time_left_s: of the call that brought it; the request's own timeout applies too.

        Raises:
            RequestRejected: what ``check_submit`` and tokenising find, or a request id in use.
            TryLater: this frontend drains or is full, or the scheduler stays away.
            DeadlineExceeded: time ran out before it was sent.
            Cancelled: ``cancel_preparing`` came first.
        """
        try:
            return await self._start(
                pb, tenant=tenant, reader=reader, reader_handle=reader_handle, time_left_s=time_left_s
            )
        except Exception as error:
            known = error if isinstance(error, LoraplexError) else Internal("")
            self.count_refused(tenant, known)
            log_refused(pb.request_id, tenant=tenant, reason=known.reason)
            raise

    async def _start(
        self,
        pb: generation_pb2.SubmitRequest,
        *,
        tenant: str,
        reader: Reader,
        reader_handle: int,
        time_left_s: float | None,
    ) -> Generation:
        loop = asyncio.get_running_loop()
        received_s = loop.time()
        self._check_room()
        limits = self.limits()
        request = check_submit(pb, limits)
        timeouts = (time_left_s, request.scheduling.timeout_s, self._max_timeout_s)
        deadline = received_s + min(timeout for timeout in timeouts if timeout is not None)
        request_id = request.request_id or uuid.uuid4().hex
        async with self._preparation(tenant, request_id, deadline):
            prompt_ids = await self._prompt_ids(request.prompt)
            check_length(len(prompt_ids), request.stop.max_tokens, limits)
            adapters = await self._adapters(tenant, request)
            await self._link.wait_until_up(self._grace_s)
        time_left_s = max(deadline - loop.time(), _LEAST_TIME_S)
        record = self._record(tenant, request, received_s)
        return self._send(request, prompt_ids, adapters, tenant, request_id, reader, reader_handle, time_left_s, record)

    def _record(self, tenant: str, request: GenerationRequest, received_s: float) -> RequestRecord | None:
        if self._metrics is None:
            return None
        now_s, num_sequences = asyncio.get_running_loop().time(), request.sampling.num_sequences
        return self._metrics.on_sent(tenant, num_sequences=num_sequences, received_s=received_s, now_s=now_s)

    def cancel_preparing(self, tenant: str, request_id: str) -> bool:
        """Whether there was such a request that the scheduler does not know yet."""
        preparation = self._preparing.get((tenant, request_id))
        if preparation is None:
            return False
        preparation.cancel()
        return True

    def _check_room(self) -> None:
        if self.is_draining:
            raise Unavailable("this server is shutting down: use another one", reason="DRAINING", retry_delay_s=1.0)
        if self.num_open >= self._max_open:
            message = f"this frontend has its limit of {self._max_open} requests open: try again"
            raise ResourceExhausted(message, reason="FRONTEND_FULL", retry_delay_s=1.0)

    @contextlib.asynccontextmanager
    async def _preparation(self, tenant: str, request_id: str, deadline: float) -> AsyncIterator[None]:
        key = (tenant, request_id)
        if key in self._preparing:
            message = f"request_id: {request_id} is the id of a running request: choose another"
            raise AlreadyExists(message, reason="REQUEST_ID_REUSED")
        scope = asyncio.timeout_at(deadline)
        self._preparing[key] = preparation = _Preparation(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if preparation.is_cancelled:
                raise Cancelled("cancelled before it was queued") from None
            raise DeadlineExceeded("time ran out before the request was queued") from None
        finally:
            self._preparing.pop(key, None)

    async def _prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        match prompt:
            case TokenPrompt():
                return prompt.token_ids
            case TextPrompt():
                return await self._tokenizer.encode_text_async(prompt.text)
            case Conversation():
                return (await self.render_chat(prompt)).token_ids

    async def render_chat(self, conversation: Conversation) -> RenderedChat:
        """Long conversations in a thread."""
        if conversation.num_chars <= INLINE_CHARS and len(conversation.messages) <= 32:
            return self._template.encode(conversation)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer.threads, self._template.encode, conversation)

    async def _adapters(self, tenant: str, request: GenerationRequest) -> Sequence[AdapterPart]:
        if request.source is None:
            return request.adapters
        return (await self._sources.adapter_of(tenant, request.source),)

    def _send(
        self,
        request: GenerationRequest,
        prompt_ids: Sequence[int],
        adapters: Sequence[AdapterPart],
        tenant: str,
        request_id: str,
        reader: Reader,
        reader_handle: int,
        time_left_s: float,
        record: RequestRecord | None,
    ) -> Generation:
        generation = Generation(
            handle=self._link.new_handle(),
            reader_handle=reader_handle,
            request_id=request_id,
            request=request,
            num_prompt_tokens=len(prompt_ids),
            model_name=self._model.name,
            eos_token_ids=self._model.eos_token_ids,
            table=self._tokenizer.decode_table,
            reader=reader,
            upstream=self._link,
            clock=asyncio.get_running_loop().time,
            record=record,
        )
        submit = convert.link_submit(
            request,
            handle=generation.handle,
            tenant=tenant,
            request_id=request_id,
            prompt_ids=prompt_ids,
            adapters=adapters,
            eos_token_ids=self._model.eos_token_ids,
            timeout_s=time_left_s,
        )
        self._link.submit(generation, submit)
        return generation
