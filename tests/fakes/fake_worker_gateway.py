"""A scheduler's worker gateway for tests: a real grpc.aio server that does what the test says and remembers all it got.

It also holds the scheduler's half of the conversion between wire and values, so that a test reads what one would.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf import duration_pb2

from loraplex.worker.v1 import sequence_pb2, worker_link_pb2, worker_link_pb2_grpc
from loraplex_contract import token_bytes
from loraplex_contract.channel import SERVER_OPTIONS

T = TypeVar("T")
WAIT_S: Final = 20.0
"""Every wait of a test is bounded by this."""


def duration(seconds: float) -> duration_pb2.Duration:
    pb = duration_pb2.Duration()
    pb.FromNanoseconds(int(seconds * 1e9))
    return pb


@dataclasses.dataclass
class Output:
    """What one sequence has produced so far, put together as a scheduler would; a gap or a repeat is an error."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    finish: worker_link_pb2.SequenceFinish | None = None

    def take(self, first_token: int, token_ids: list[int]) -> None:
        assert self.finish is None, "tokens after the end"
        assert first_token == len(self.tokens), f"token {first_token} after {len(self.tokens)}: a gap or a repeat"
        self.tokens += token_ids


def columns_of(tokens: sequence_pb2.TokenColumns) -> Iterator[tuple[int, int, list[int]]]:
    """(sequence id, index of the first token, tokens) of each entry."""
    ids, start = list(token_bytes.unpack(tokens.token_ids_le32)), 0
    for key, first, count in zip(tokens.keys, tokens.first_tokens, tokens.counts, strict=True):
        yield key, first, ids[start : start + count]
        start += count
    assert start == len(ids), "tokens that belong to no entry"


class HungUp(Exception):
    """The test wants the stream to end."""


class WorkerStream:
    """One worker's stream, from its Register to its end."""

    def __init__(self, register: worker_link_pb2.Register, epoch: int) -> None:
        self.register = register
        self.epoch = epoch
        self.frames: list[worker_link_pb2.ServeRequest] = []
        """Everything after Register, in order."""
        self.outputs: dict[int, Output] = {}
        self.acks = True
        """Whether heartbeats are answered."""
        self.ended = False
        self.may_end = asyncio.Event()
        """Cleared, the gateway keeps the stream open after the worker has half-closed it."""
        self.may_end.set()
        self._outbox: asyncio.Queue[worker_link_pb2.ServeResponse] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._hung_up = asyncio.Event()

    def send(self, *, epoch: int | None = None, **deltas: Any) -> None:
        """One Deltas frame, of this stream's epoch unless another is given."""
        frame = worker_link_pb2.Deltas(epoch=self.epoch if epoch is None else epoch, **deltas)
        self._outbox.put_nowait(worker_link_pb2.ServeResponse(deltas=frame))

    def of_kind(self, kind: str) -> list[Any]:
        return [getattr(frame, kind) for frame in self.frames if frame.WhichOneof("frame") == kind]

    def events(self, digest: str) -> list[worker_link_pb2.AdapterEvent]:
        return [event for event in self.of_kind("adapter") if event.digest == digest]

    def output(self, sequence_id: int) -> Output:
        return self.outputs.setdefault(sequence_id, Output())

    async def until(self, question: Callable[[], T | None], what: str) -> T:
        """The first truthy answer; asked again after every frame."""
        try:
            async with asyncio.timeout(WAIT_S), self._news:
                while not (answer := question()):
                    await self._news.wait()
                return answer
        except TimeoutError:
            raise AssertionError(f"after {WAIT_S} s still not: {what}") from None

    async def until_finished(self, sequence_id: int) -> Output:
        output = self.output(sequence_id)
        await self.until(lambda: output.finish, f"sequence {sequence_id} finished")
        return output

    async def until_event(self, digest: str, state: "worker_link_pb2.WorkerAdapterState.ValueType") -> Any:
        def find() -> Any:
            return next((event for event in self.events(digest) if event.state == state), None)

        return await self.until(find, f"{digest[:8]} in state {state}")

    async def take(self, frame: worker_link_pb2.ServeRequest) -> None:
        async with self._news:
            self.frames.append(frame)
            kind = frame.WhichOneof("frame")
            if kind == "report":
                self._take_report(frame.report)
            elif kind == "heartbeat" and self.acks:
                ack = worker_link_pb2.HeartbeatAck(sequence=frame.heartbeat.sequence)
                self._outbox.put_nowait(worker_link_pb2.ServeResponse(heartbeat=ack))
            self._news.notify_all()

    def hang_up(self) -> None:
        """End the stream with UNAVAILABLE."""
        self._hung_up.set()

    async def until_hung_up(self) -> None:
        await self._hung_up.wait()
        raise HungUp

    async def end(self) -> None:
        async with self._news:
            self.ended = True
            self._news.notify_all()

    async def pump(self, write: Callable[[worker_link_pb2.ServeResponse], Any]) -> None:
        while True:
            await write(await self._outbox.get())

    def _take_report(self, report: worker_link_pb2.StepReport) -> None:
        for key, first, token_ids in columns_of(report.tokens):
            self.output(key).take(first, token_ids)
        for finish in report.finishes:
            assert self.output(finish.sequence_id).finish is None, "finished twice"
            self.output(finish.sequence_id).finish = finish


class FakeWorkerGateway(worker_link_pb2_grpc.WorkerLinkServiceServicer):
    """Accepts workers one after the other; each stream gets an epoch of its own."""

    def __init__(
        self,
        *,
        lease_ttl_s: float = 10.0,
        heartbeat_interval_s: float = 0.05,
        silent: int = 0,
        epochs: Sequence[int] = range(7, 100),
    ) -> None:
        """Nothing listens yet.

        Args:
            lease_ttl_s: of every stream.
            heartbeat_interval_s: of every stream.
            silent: how many of the first streams get no answer to Register.
            epochs: of the streams, in the order in which they come.
        """
        self.streams: list[WorkerStream] = []
        self.lease_ttl_s = lease_ttl_s
        self.heartbeat_interval_s = heartbeat_interval_s
        self._silent = silent
        self._epochs = epochs
        self._arrived = asyncio.Condition()

    async def Serve(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]
        first = await anext(request_iterator)
        assert first.WhichOneof("frame") == "register", "Register comes first"
        stream = await self._welcome(first.register)
        if len(self.streams) > self._silent:
            await context.write(worker_link_pb2.ServeResponse(registered=self._registered(stream)))
        try:
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(stream.pump(context.write), name="gateway/write"),
                    tasks.create_task(stream.until_hung_up(), name="gateway/hang-up"),
                ]
                async for frame in request_iterator:
                    await stream.take(frame)
                await stream.may_end.wait()
                for task in others:
                    task.cancel()
        except* HungUp:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the test hung up")
        finally:
            await stream.end()

    async def worker(self, index: int = 0) -> WorkerStream:
        """The stream that came as the ``index``-th."""
        try:
            async with asyncio.timeout(WAIT_S), self._arrived:
                await self._arrived.wait_for(lambda: len(self.streams) > index)
        except TimeoutError:
            raise AssertionError(f"worker stream {index} did not come in {WAIT_S} s") from None
        return self.streams[index]

    async def _welcome(self, register: worker_link_pb2.Register) -> WorkerStream:
        async with self._arrived:
            stream = WorkerStream(register, epoch=self._epochs[len(self.streams)])
            self.streams.append(stream)
            self._arrived.notify_all()
        return stream

    def _registered(self, stream: WorkerStream) -> worker_link_pb2.Registered:
        return worker_link_pb2.Registered(
            epoch=stream.epoch,
            lease_ttl=duration(self.lease_ttl_s),
            heartbeat_interval=duration(self.heartbeat_interval_s),
        )


class GatewayServer:
    """The gateway on a loopback port that stays the same when it is killed and started again."""

    def __init__(self, gateway: FakeWorkerGateway) -> None:
        self.gateway = gateway
        self.address = "127.0.0.1:0"
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_link_pb2_grpc.add_WorkerLinkServiceServicer_to_server(self.gateway, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def kill(self) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)


@contextlib.asynccontextmanager
async def serve(gateway: FakeWorkerGateway) -> AsyncIterator[GatewayServer]:
    server = GatewayServer(gateway)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


def admit(sequence_id: int, prompt: list[int], *, max_tokens: int = 8, **changes: Any) -> worker_link_pb2.Admit:
    """Greedy, base model, with a grant for everything; ``changes`` are fields of Admit."""
    fields: dict[str, Any] = {
        "prompt_ids_le32": token_bytes.pack(prompt),
        "sampling": sequence_pb2.Sampling(top_p=1.0, repetition_penalty=1.0, seed=sequence_id),
        "stop": sequence_pb2.Stop(max_tokens=max_tokens),
        "grant_tokens": max_tokens,
    } | changes
    return worker_link_pb2.Admit(sequence_id=sequence_id, **fields)


def using(*digests: str) -> list[worker_link_pb2.AdapterWeight]:
    return [worker_link_pb2.AdapterWeight(digest=digest, weight=1.0) for digest in digests]


def load(digest: str, *, num_pages: int, timeout_s: float = 10.0) -> worker_link_pb2.LoadAdapter:
    return worker_link_pb2.LoadAdapter(digest=digest, num_pages=num_pages, timeout=duration(timeout_s))
