"""A scheduler without a core: a real grpc.aio server for FrontendLinkService and RegistryService, driven by a test.

By hand::

    submit = await fake.next_submit()
    await fake.begin(submit)                                # Accepted and Started
    await fake.tokens((submit.handle, 0, 0, [5, 6]))        # (handle, index, first token, ids)
    await fake.end(submit.handle, reason=MAX_TOKENS)

Or by itself: ``fake.script`` is called for every submit; ``echo`` gives back the prompt's tokens.
"""

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from loraplex.v1 import adapter_ref_pb2, generation_pb2
from loraplex.worker.v1 import (
    frontend_link_pb2,
    frontend_link_pb2_grpc,
    registry_pb2_grpc,
    sequence_pb2,
)
from loraplex_contract import status, token_bytes
from loraplex_contract.channel import SERVER_OPTIONS
from loraplex_contract.errors import LoraplexError
from loraplex_contract.interceptor import ErrorInterceptor
from tests.fakes.fake_registry import FakeRegistry

WAIT_S = 10.0
Entry = tuple[int, int, int, Sequence[int]]
"""(handle, index, index of the first token, ids)"""
Script = Callable[["FakeScheduler", frontend_link_pb2.LinkSubmit], Awaitable[None]]


class FakeScheduler:
    """Remembers everything that it hears; says what the test wants.

    Args:
        heartbeat_s: None: it never sends one.
    """

    def __init__(self, *, script: Script | None = None, heartbeat_s: float | None = 0.2) -> None:
        self.script = script
        self.heartbeat_s = heartbeat_s
        self.cluster = frontend_link_pb2.ClusterSummary(num_ready_workers=1, max_context_tokens=512)
        self.hellos: list[frontend_link_pb2.Hello] = []
        self.submits: list[frontend_link_pb2.LinkSubmit] = []
        self.stops: list[frontend_link_pb2.LinkStop] = []
        self.cancels: list[frontend_link_pb2.LinkCancel] = []
        self.num_upward = 0
        self.num_goodbyes = 0
        self.answers_cancels = True
        """Whether a cancelled handle gets its finish."""
        self.accepts_links = True
        self.registry = FakeRegistry()
        self.address = ""
        self._open: dict[int, frontend_link_pb2.LinkSubmit] = {}
        self._new_submits: deque[frontend_link_pb2.LinkSubmit] = deque()
        self._link: Any | None = None
        self._write_lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._drop = asyncio.Event()
        self._scripts: set[asyncio.Task[None]] = set()
        self._turn = 0

    @contextlib.asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator["FakeScheduler"]:
        server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=SERVER_OPTIONS)
        frontend_link_pb2_grpc.add_FrontendLinkServiceServicer_to_server(_LinkService(self), server)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(self.registry, server)
        self.address = f"127.0.0.1:{server.add_insecure_port(address)}"
        await server.start()
        try:
            yield self
        finally:
            self.accepts_links = False
            self.drop_link()
            for task in list(self._scripts):
                task.cancel()
            await server.stop(0)

    # --- what a test waits for ---

    async def next_submit(self) -> frontend_link_pb2.LinkSubmit:
        await self.until(lambda: len(self._new_submits) > 0)
        return self._new_submits.popleft()

    async def until(self, condition: Callable[[], object]) -> None:
        """Until something that was heard makes it true; fails after ``WAIT_S``."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    @property
    def is_linked(self) -> bool:
        return self._link is not None

    @property
    def open_handles(self) -> list[int]:
        return sorted(self._open)

    # --- what a test says ---

    async def say(self, **fields: object) -> None:
        """One Downward with these fields."""
        self._turn += 1
        down = frontend_link_pb2.Downward(turn=self._turn, **fields)  # type: ignore[arg-type]
        await self._send(frontend_link_pb2.LinkResponse(downward=down))

    async def begin(
        self, submit: frontend_link_pb2.LinkSubmit, *, queue_position: int = 0, seed: int | None = None
    ) -> None:
        await self.say(
            accepted=[frontend_link_pb2.LinkAccepted(handle=submit.handle, queue_position=queue_position)],
            started=[started_of(submit, seed)],
        )

    async def reject(self, handle: int, error: LoraplexError) -> None:
        self._open.pop(handle, None)
        await self.say(rejected=[frontend_link_pb2.LinkRejected(handle=handle, error=status.error_to_pb(error))])

    async def tokens(self, *entries: Entry, logprobs: dict[int, Sequence[sequence_pb2.Logprobs]] | None = None) -> None:
        await self.say(tokens=columns_of(entries, logprobs))

    async def end(
        self,
        handle: int,
        *,
        index: int = 0,
        reason: Any = generation_pb2.FINISH_REASON_MAX_TOKENS,
        stop_token_id: int | None = None,
        num_output_tokens: int = 0,
        error: LoraplexError | None = None,
    ) -> None:
        self._open.pop(handle, None)
        await self.say(
            ended=[ended_of(handle, index, reason, stop_token_id, num_output_tokens, error)],
        )

    async def set_cluster(self, **fields: int) -> None:
        self.cluster = frontend_link_pb2.ClusterSummary(**fields)
        await self._send(
            frontend_link_pb2.LinkResponse(heartbeat=frontend_link_pb2.SchedulerHeartbeat(cluster=self.cluster))
        )

    def drop_link(self) -> None:
        self._drop.set()

    # --- the link ---

    async def serve_link(self, requests: AsyncIterator[frontend_link_pb2.LinkRequest], context) -> None:
        first = await anext(requests, None)
        if not self.accepts_links:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        assert first is not None, "a link without a frame"
        assert first.WhichOneof("frame") == "hello", "the first frame must be Hello"
        self.hellos.append(first.hello)
        self._drop = asyncio.Event()
        ready = frontend_link_pb2.Ready(epoch=1, cluster=self.cluster)
        ready.heartbeat_interval.FromMilliseconds(int((self.heartbeat_s or 0.2) * 1000))
        await context.write(frontend_link_pb2.LinkResponse(ready=ready))
        self._link = context
        await self._notify()
        beat = asyncio.create_task(self._beat())
        listen = asyncio.create_task(self._listen(requests))
        drop = asyncio.create_task(self._drop.wait())
        try:
            await asyncio.wait({listen, drop}, return_when=asyncio.FIRST_COMPLETED)
            if listen.done():
                listen.result()
        finally:
            self._link = None
            self._open.clear()
            for task in (beat, listen, drop):
                task.cancel()
            await asyncio.gather(beat, listen, drop, return_exceptions=True)
            await self._notify()

    async def _beat(self) -> None:
        while self.heartbeat_s is not None:
            await asyncio.sleep(self.heartbeat_s)
            beat = frontend_link_pb2.SchedulerHeartbeat(cluster=self.cluster)
            await self._send(frontend_link_pb2.LinkResponse(heartbeat=beat))

    async def _listen(self, requests: AsyncIterator[frontend_link_pb2.LinkRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("frame") == "goodbye":
                self.num_goodbyes += 1
                return
            self.num_upward += 1
            for submit in request.upward.submit:
                self._take_submit(submit)
            self.stops.extend(request.upward.stop)
            for stop in request.upward.stop:
                if self.script is not None:
                    await self.end(stop.handle, index=stop.index, num_output_tokens=stop.num_tokens)
            for cancel in request.upward.cancel:
                self.cancels.append(cancel)
                await self._take_cancel(cancel)
            await self._notify()

    def _take_submit(self, submit: frontend_link_pb2.LinkSubmit) -> None:
        self.submits.append(submit)
        self._open[submit.handle] = submit
        if self.script is None:
            self._new_submits.append(submit)
            return
        task = asyncio.ensure_future(self.script(self, submit))
        self._scripts.add(task)
        task.add_done_callback(self._scripts.discard)

    async def _take_cancel(self, cancel: frontend_link_pb2.LinkCancel) -> None:
        handle = cancel.handle
        if cancel.nonce:
            wanted = (cancel.tenant, cancel.request_id)
            handles = [key for key, submit in self._open.items() if (submit.tenant, submit.request_id) == wanted]
            answer = frontend_link_pb2.LinkCancelled(nonce=cancel.nonce, found=bool(handles))
            await self.say(cancelled=[answer])
            handle = handles[0] if handles else 0
        submit_found = self._open.get(handle)
        if submit_found is not None and self.answers_cancels:
            for index in range(submit_found.n):
                await self.end(handle, index=index, reason=generation_pb2.FINISH_REASON_CANCELLED)

    async def _send(self, response: frontend_link_pb2.LinkResponse) -> None:
        async with self._write_lock:
            if self._link is not None:
                await self._link.write(response)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def started_of(submit: frontend_link_pb2.LinkSubmit, seed: int | None = None) -> frontend_link_pb2.LinkStarted:
    given = submit.sampling.seed if submit.sampling.HasField("seed") else 4711
    started = frontend_link_pb2.LinkStarted(handle=submit.handle, seed=given if seed is None else seed)
    for adapter in submit.adapters:
        digest = hashlib.sha256(adapter.name.encode()).hexdigest()
        started.adapters.append(
            adapter_ref_pb2.ResolvedAdapter(name=adapter.name, version=1, digest=digest, weight=adapter.weight)
        )
    return started


def columns_of(
    entries: Sequence[Entry], logprobs: dict[int, Sequence[sequence_pb2.Logprobs]] | None = None
) -> sequence_pb2.TokenColumns:
    columns = sequence_pb2.TokenColumns(
        keys=[entry[0] for entry in entries],
        indexes=[entry[1] for entry in entries],
        first_tokens=[entry[2] for entry in entries],
        counts=[len(entry[3]) for entry in entries],
        token_ids_le32=token_bytes.pack(token_id for entry in entries for token_id in entry[3]),
    )
    for number, run in (logprobs or {}).items():
        columns.logprobs[number].tokens.extend(run)
    return columns


def ended_of(
    handle: int,
    index: int,
    reason: Any,
    stop_token_id: int | None,
    num_output_tokens: int,
    error: LoraplexError | None,
) -> frontend_link_pb2.LinkEnded:
    ended = frontend_link_pb2.LinkEnded(handle=handle, index=index, reason=reason, stop_token_id=stop_token_id)
    ended.usage.num_output_tokens = num_output_tokens
    if error is not None:
        ended.reason = generation_pb2.FINISH_REASON_ERROR
        ended.error.CopyFrom(status.error_to_pb(error))
    return ended


def echo(*, tokens_per_turn: int = 1, pause_s: float = 0.0) -> Script:
    """Gives the prompt's tokens back, up to max_tokens, on every sequence."""

    async def run(fake: FakeScheduler, submit: frontend_link_pb2.LinkSubmit) -> None:
        await fake.begin(submit)
        ids = list(token_bytes.unpack(submit.prompt_ids_le32))
        if submit.stop.HasField("max_tokens"):
            ids = ids[: submit.stop.max_tokens]
        for first in range(0, len(ids), tokens_per_turn):
            if submit.handle not in fake.open_handles:
                return
            part = ids[first : first + tokens_per_turn]
            await fake.tokens(*((submit.handle, index, first, part) for index in range(submit.n)))
            await asyncio.sleep(pause_s)
        if submit.handle in fake.open_handles:
            for index in range(submit.n):
                await fake.end(submit.handle, index=index, num_output_tokens=len(ids))

    return run


class _LinkService(frontend_link_pb2_grpc.FrontendLinkServiceServicer):
    def __init__(self, fake: FakeScheduler) -> None:
        self._fake = fake

    async def Link(self, request_iterator, context) -> None:  # type: ignore[override]
        await self._fake.serve_link(request_iterator, context)
