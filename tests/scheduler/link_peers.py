"""A scheduler's services on a loopback port, and peers that speak to them over real grpc.aio streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc

from loraplex.worker.v1 import (
    frontend_link_pb2,
    frontend_link_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    sequence_pb2,
    worker_link_pb2,
    worker_link_pb2_grpc,
)
from loraplex_contract import token_bytes
from loraplex_contract.channel import LINK_OPTIONS, SERVER_OPTIONS
from loraplex_contract.interceptor import ErrorInterceptor
from loraplex_scheduler.adapters import Adapters
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.model_agreement import ModelAgreement
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.registry_service import RegistryService
from loraplex_scheduler.service import FrontendLink, WorkerLink
from loraplex_scheduler.settings import SchedulerSettings

WAIT_S: Final = 10.0
MODEL: Final = "f" * 64


async def until(question: Callable[[], Any], what: str) -> Any:
    """The first truthy answer, within a bound; asked again whenever other tasks have run."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                if answer := question():
                    return answer
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"after {WAIT_S} s still not: {what}") from None


class Scheduler:
    """The services in this process, on the address that it was given."""

    def __init__(self, address: str, dispatcher: Dispatcher) -> None:
        self.address = address
        self.dispatcher = dispatcher

    @property
    def worker(self) -> Any:
        """Statistics of the only worker, or None."""
        workers = self.dispatcher.statistics().workers
        return workers[0] if workers else None


@contextlib.asynccontextmanager
async def scheduler(folder: Path, **settings: Any) -> AsyncIterator[Scheduler]:
    """As ``server.serve``, without the signals."""
    given = {"heartbeat_s": 0.05, "lease_ttl_s": 5.0, "state_dir": folder}
    chosen = SchedulerSettings(**{**given, **settings})
    async with Registry(chosen.database_url()) as registry:
        term = await registry.begin_term()
        dispatcher = Dispatcher(SchedulerCore(chosen.core_config()))
        adapters = Adapters(registry, dispatcher)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
        models = ModelAgreement()
        frontend_link_pb2_grpc.add_FrontendLinkServiceServicer_to_server(
            FrontendLink(dispatcher, chosen, models, term=term), server
        )
        worker_link_pb2_grpc.add_WorkerLinkServiceServicer_to_server(
            WorkerLink(dispatcher, chosen, models, term=term), server
        )
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(
            RegistryService(adapters, dispatcher, term=term), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(dispatcher.run()), tasks.create_task(adapters.run())]
            await adapters.restore()
            await server.start()
            try:
                yield Scheduler(f"127.0.0.1:{port}", dispatcher)
            finally:
                await server.stop(grace=None)
                for task in running:
                    task.cancel()


class WorkerPeer:
    """Answers loads and evictions, and steps only when told: each admitted sequence counts up from its prompt's sum."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.epoch = 0
        self.admits: dict[int, worker_link_pb2.Admit] = {}
        self.live: dict[int, list[int]] = {}
        self.grants: dict[int, int] = {}
        self.adapters: set[str] = set()
        self.frames: list[worker_link_pb2.Deltas] = []
        self.acks = 0
        self.load_error: Any = None
        self.is_over = asyncio.Event()
        self.num_steps = 0

    async def greet(self, **changes: Any) -> None:
        fields = {
            "protocol_version": 1,
            "worker_id": "worker",
            "incarnation": "1",
            "model_fingerprint": MODEL,
            "device": "cpu",
            "num_pages": 100,
            "page_size": 4,
            "page_bytes": 100,
            "max_sequences": 8,
            "max_step_tokens": 64,
            "max_context_tokens": 256,
            "vocab_size": 1000,
            "adapter_parameter_bytes": 2,
        }
        register = worker_link_pb2.Register(**{**fields, **changes})
        await self.call.write(worker_link_pb2.ServeRequest(register=register))
        first = await self.call.read()
        assert first is not grpc.aio.EOF and first.HasField("registered"), "not registered"  # noqa: PT018
        self.epoch = first.registered.epoch

    async def read(self) -> None:
        """Until the stream ends."""
        try:
            while (frame := await self.call.read()) is not grpc.aio.EOF:
                if frame.HasField("deltas"):
                    await self._apply(frame.deltas)
                self.acks += frame.HasField("heartbeat")
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.is_over.set()

    async def _apply(self, deltas: worker_link_pb2.Deltas) -> None:
        assert deltas.epoch == self.epoch
        self.frames.append(deltas)
        for sequence_id in deltas.retire:
            self.live.pop(sequence_id, None)
        for digest in deltas.evict:
            self.adapters.remove(digest)
            await self._tell_adapter(digest, worker_link_pb2.WORKER_ADAPTER_STATE_EVICTED)
        for load in deltas.load:
            if self.load_error is None:
                self.adapters.add(load.digest)
                await self._tell_adapter(load.digest, worker_link_pb2.WORKER_ADAPTER_STATE_DEVICE)
            else:
                await self._tell_adapter(load.digest, worker_link_pb2.WORKER_ADAPTER_STATE_FAILED, self.load_error)
        for grant in deltas.grant:
            self.grants[grant.sequence_id] = grant.grant_tokens
        for admit in deltas.admit:
            assert {part.digest for part in admit.adapters} <= self.adapters, "admitted without its adapter"
            self.admits[admit.sequence_id] = admit
            self.grants[admit.sequence_id] = admit.grant_tokens
            self.live[admit.sequence_id] = list(token_bytes.unpack(admit.emitted_ids_le32))

    async def _tell_adapter(self, digest: str, state: Any, error: Any = None) -> None:
        event = worker_link_pb2.AdapterEvent(epoch=self.epoch, digest=digest, state=state, error=error)
        await self.call.write(worker_link_pb2.ServeRequest(adapter=event))

    async def step(self, times: int = 1) -> None:
        for _ in range(times):
            await self.call.write(worker_link_pb2.ServeRequest(report=self._report()))
            await asyncio.sleep(0)

    def _report(self) -> worker_link_pb2.StepReport:
        self.num_steps += 1
        report = worker_link_pb2.StepReport(epoch=self.epoch, step=self.num_steps)
        ids: list[int] = []
        for sequence_id, output in list(self.live.items()):
            admit = self.admits[sequence_id]
            if len(output) >= self.grants[sequence_id]:
                continue
            report.tokens.keys.append(sequence_id)
            report.tokens.first_tokens.append(len(output))
            report.tokens.counts.append(1)
            output.append(token_at(token_bytes.unpack(admit.prompt_ids_le32), len(output)))
            ids.append(output[-1])
            if len(output) == admit.stop.max_tokens:
                reason = worker_link_pb2.SEQUENCE_FINISH_REASON_MAX_TOKENS
                report.finishes.add(sequence_id=sequence_id, reason=reason)
                del self.live[sequence_id]
        report.tokens.token_ids_le32 = token_bytes.pack(ids)
        return report

    async def beat(self, *, loop_age_s: float = 0.0, has_work: bool = False) -> None:
        heartbeat = worker_link_pb2.WorkerHeartbeat(epoch=self.epoch, sequence=1, has_work=has_work)
        heartbeat.loop_age.FromNanoseconds(int(loop_age_s * 1e9))
        await self.call.write(worker_link_pb2.ServeRequest(heartbeat=heartbeat))


def token_at(prompt: Any, index: int) -> int:
    return (sum(prompt) + index) % 1000


class FrontendPeer:
    """Keeps what it hears by handle, and asserts that every token comes once and in order."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.accepted: set[int] = set()
        self.rejected: dict[int, Any] = {}
        self.started: dict[int, Any] = {}
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.ended: dict[tuple[int, int], Any] = {}
        self.cancelled: dict[int, bool] = {}
        self.cluster = frontend_link_pb2.ClusterSummary()
        self.is_over = asyncio.Event()

    async def greet(self, frontend_id: str = "front", incarnation: str = "1", fingerprint: str = MODEL) -> None:
        hello = frontend_link_pb2.Hello(
            protocol_version=1, frontend_id=frontend_id, incarnation=incarnation, model_fingerprint=fingerprint
        )
        await self.call.write(frontend_link_pb2.LinkRequest(hello=hello))
        first = await self.call.read()
        assert first is not grpc.aio.EOF and first.HasField("ready"), "not ready"  # noqa: PT018

    async def read(self) -> None:
        try:
            while (frame := await self.call.read()) is not grpc.aio.EOF:
                if frame.HasField("downward"):
                    self._apply(frame.downward)
                elif frame.HasField("heartbeat"):
                    self.cluster = frame.heartbeat.cluster
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.is_over.set()

    def _apply(self, down: frontend_link_pb2.Downward) -> None:
        self.accepted |= {accepted.handle for accepted in down.accepted}
        self.rejected |= {rejected.handle: rejected.error for rejected in down.rejected}
        self.started |= {started.handle: started for started in down.started}
        columns, start = down.tokens, 0
        ids = token_bytes.unpack(columns.token_ids_le32)
        for handle, index, first, count in zip(
            columns.keys, columns.indexes, columns.first_tokens, columns.counts, strict=True
        ):
            output = self.tokens.setdefault((handle, index), [])
            assert first == len(output), "a gap or a repeat"
            assert (handle, index) not in self.ended, "tokens after the end"
            output += ids[start : start + count]
            start += count
        for ended in down.ended:
            assert (ended.handle, ended.index) not in self.ended, "ended twice"
            self.ended[ended.handle, ended.index] = ended
        self.cancelled |= {cancelled.nonce: cancelled.found for cancelled in down.cancelled}

    async def submit(self, handle: int, *names: str, prompt: tuple[int, ...] = (1, 2, 3), **fields: Any) -> None:
        pb = frontend_link_pb2.LinkSubmit(
            handle=handle,
            tenant="red",
            request_id=f"id-{handle}",
            prompt_ids_le32=token_bytes.pack(prompt),
            adapters=[frontend_link_pb2.LinkAdapter(name=name, weight=1.0) for name in names],
            sampling=sequence_pb2.Sampling(top_p=1.0, repetition_penalty=1.0),
            n=fields.pop("n", 1),
            stop=sequence_pb2.Stop(max_tokens=fields.pop("max_tokens", 4)),
        )
        for name, seconds in fields.items():
            getattr(pb, name).FromNanoseconds(int(seconds * 1e9))
        await self.send(submit=[pb])

    async def send(self, **parts: Any) -> None:
        await self.call.write(frontend_link_pb2.LinkRequest(upward=frontend_link_pb2.Upward(**parts)))


@contextlib.asynccontextmanager
async def _connected(address: str, make: Callable[[grpc.aio.Channel], Any]) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=LINK_OPTIONS) as channel:
        yield make(channel)


@contextlib.asynccontextmanager
async def worker(address: str, **register: Any) -> AsyncIterator[WorkerPeer]:
    def open_stream(channel: grpc.aio.Channel) -> WorkerPeer:
        stub: Any = worker_link_pb2_grpc.WorkerLinkServiceStub(channel)
        return WorkerPeer(stub.Serve())

    async with _connected(address, open_stream) as peer, asyncio.TaskGroup() as tasks:
        await peer.greet(**register)
        reading = tasks.create_task(peer.read())
        try:
            yield peer
        finally:
            peer.call.cancel()
            reading.cancel()


@contextlib.asynccontextmanager
async def frontend(address: str, **hello: str) -> AsyncIterator[FrontendPeer]:
    def open_stream(channel: grpc.aio.Channel) -> FrontendPeer:
        stub: Any = frontend_link_pb2_grpc.FrontendLinkServiceStub(channel)
        return FrontendPeer(stub.Link())

    async with _connected(address, open_stream) as peer, asyncio.TaskGroup() as tasks:
        await peer.greet(**hello)
        reading = tasks.create_task(peer.read())
        try:
            yield peer
        finally:
            peer.call.cancel()
            reading.cancel()


@contextlib.asynccontextmanager
async def registry_stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=LINK_OPTIONS) as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel)


def version(name: str = "poet", digest: str = "a" * 64, **fields: Any) -> registry_pb2.CommitVersionRequest:
    given = {"tenant": "red", "num_bytes": 10, "num_parameters": 100, "report_json": "{}"}
    return registry_pb2.CommitVersionRequest(name=name, digest=digest, **{**given, **fields})


def handles(*numbers: int) -> Iterator[tuple[int, int]]:
    return ((number, 0) for number in numbers)
