"""A frontend in this process between a real channel and a fake scheduler, all over loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from loraplex.admin.v1 import cluster_pb2_grpc
from loraplex.v1 import (
    adapter_pb2_grpc,
    generation_pb2,
    inference_pb2_grpc,
    model_pb2_grpc,
    session_pb2,
    tokenizer_pb2_grpc,
)
from loraplex_contract.channel import CLIENT_OPTIONS
from loraplex_frontend.server import Frontend
from loraplex_frontend.settings import FrontendSettings
from tests.fakes.fake_scheduler import FakeScheduler, Script

WAIT_S = 10.0
INFERENCE = "loraplex.v1.InferenceService"


class Service:
    """Stubs of everything that the frontend serves, and the fake behind it."""

    def __init__(self, frontend: Frontend, fake: FakeScheduler, channel: grpc.aio.Channel, admin: grpc.aio.Channel):
        self.frontend = frontend
        self.fake = fake
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.tokenizers = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(admin)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.admin = admin

    async def wait_for_health(self, wanted: int, name: str = INFERENCE) -> None:
        request = health_pb2.HealthCheckRequest(service=name)
        async with asyncio.timeout(WAIT_S):
            call = self.health.Watch(request)
            while (await call.read()).status != wanted:
                pass
            call.cancel()

    async def wait_for_open(self, num_requests: int) -> None:
        """Until the frontend has that many requests open, whether the scheduler knows them or not."""
        async with asyncio.timeout(WAIT_S):
            while self.frontend.num_open_requests < num_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def started(
    model: Path, folder: Path, *, script: Script | None = None, fake: FakeScheduler | None = None, **settings
) -> AsyncIterator[Service]:
    """Everything is up and healthy inside, and gone after."""
    fake = fake or FakeScheduler(script=script)
    async with fake.serving(), asyncio.TaskGroup() as tasks:
        frontend = Frontend(frontend_settings(model, folder, scheduler=fake.address, **settings))
        running = tasks.create_task(frontend.run())
        try:
            async with asyncio.timeout(WAIT_S):
                await frontend.is_listening.wait()
            async with (
                grpc.aio.insecure_channel(frontend.ports["listen"], options=CLIENT_OPTIONS) as channel,
                grpc.aio.insecure_channel(frontend.ports["admin_listen"], options=CLIENT_OPTIONS) as admin,
            ):
                service = Service(frontend, fake, channel, admin)
                if fake.accepts_links and fake.cluster.num_ready_workers:
                    await service.wait_for_health(health_pb2.HealthCheckResponse.SERVING)
                yield service
        finally:
            frontend.stop()
            async with asyncio.timeout(WAIT_S):
                await running


def frontend_settings(model: Path, folder: Path, **given) -> FrontendSettings:
    values = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "model": model,
        "store": folder / "store",
        "drain_grace_s": 0.05,
        "heartbeat_s": 1.0,
        **given,
    }
    return FrontendSettings(**values)


class Session:
    """A client of one Session call. ``next`` leaves out heartbeats and credit unless they are asked for."""

    def __init__(self, service: Service, **call) -> None:
        self.call = service.inference.Session(**call)
        self.credits = 0
        self.heartbeats = 0

    async def open(self, **fields) -> session_pb2.SessionOpened:
        await self.send(open=session_pb2.SessionOpen(**fields))
        opened: session_pb2.SessionOpened = (await self.read()).opened
        return opened

    async def send(self, **frame) -> None:
        await self.call.write(session_pb2.SessionRequest(**frame))

    async def submit(self, handle: int, request: generation_pb2.SubmitRequest) -> None:
        await self.send(submit=session_pb2.SessionSubmit(handle=handle, request=request))

    async def cancel(self, *handles: int) -> None:
        await self.send(cancel=session_pb2.SessionCancel(handles=handles))

    async def read(self):
        async with asyncio.timeout(WAIT_S):
            return await self.call.read()

    async def next(self):
        """The next frame that is neither heartbeat nor credit: its kind and itself; (None, None) at the end."""
        while True:
            response = await self.read()
            if response is grpc.aio.EOF:
                return None, None
            match kind := response.WhichOneof("frame"):
                case "credit":
                    self.credits += response.credit.num_requests
                case "heartbeat":
                    self.heartbeats += 1
                case _:
                    return kind, getattr(response, kind)

    async def until_finished(self, *handles: int) -> dict[int, "Gathered"]:
        """Reads until each handle has its terminal."""
        gathered = {handle: Gathered() for handle in handles}
        while not all(one.is_over for one in gathered.values()):
            kind, frame = await self.next()
            assert kind is not None, "the session ended early"
            if kind == "tokens":
                for delta in frame.deltas:
                    gathered[delta.handle].take(delta)
            elif kind in ("accepted", "started", "rejected"):
                gathered[frame.handle].kinds.append(kind)
                gathered[frame.handle].rejection = frame.error if kind == "rejected" else None
        return gathered

    async def status(self) -> grpc.StatusCode:
        async with asyncio.timeout(WAIT_S):
            return await self.call.code()


class Gathered:
    """What one sequence has sent."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.indexes: list[int] = []
        self.token_ids: list[int] = []
        self.text = ""
        self.finishes: list[generation_pb2.Finish] = []
        self.rejection: Any = None
        self.num_deltas = 0

    def take(self, delta: generation_pb2.SequenceDelta) -> None:
        assert not self.finishes, "something came after the finish"
        self.kinds.append("delta")
        self.num_deltas += 1
        self.indexes += range(delta.first_token, delta.first_token + delta.num_tokens)
        self.token_ids += delta.token_ids
        self.text += delta.text
        if delta.HasField("finish"):
            self.finishes.append(delta.finish)

    @property
    def is_over(self) -> bool:
        return bool(self.finishes) or self.rejection is not None


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """``reason`` of the status's ErrorInfo."""
    return str(info_of(error).reason)


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    for detail in details_of(error):
        detail.Unpack(info)
    return info


def has_retry_info(error: grpc.aio.AioRpcError) -> bool:
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details_of(error))


def details_of(error: grpc.aio.AioRpcError):
    rich = rpc_status.from_call(cast(Any, error))
    assert rich is not None, error
    return rich.details


def fields_of(error: grpc.aio.AioRpcError) -> list[str]:
    """Every field path of the status's BadRequest."""
    bad = error_details_pb2.BadRequest()
    for detail in details_of(error):
        detail.Unpack(bad)
    return [violation.field for violation in bad.field_violations]
