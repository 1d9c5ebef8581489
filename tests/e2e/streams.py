"""Clients of the public API for the end-to-end tests, straight on the generated stubs."""

import asyncio
import dataclasses
from typing import Any

import grpc

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.v1 import generation_pb2, inference_pb2, inference_pb2_grpc, sampling_pb2, session_pb2
from loraplex_contract.channel import CLIENT_OPTIONS

GREEDY = sampling_pb2.SamplingParams(temperature=0)


@dataclasses.dataclass
class Stream:
    """What one request got, as it came."""

    indexes: list[int] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    terminals: list[str] = dataclasses.field(default_factory=list)
    finish: generation_pb2.Finish | None = None

    def take(self, delta: generation_pb2.SequenceDelta) -> None:
        self.indexes += range(delta.first_token, delta.first_token + delta.num_tokens)
        self.token_ids += delta.token_ids
        self.text += delta.text
        if delta.HasField("finish"):
            self.finish = delta.finish
            self.terminals.append(generation_pb2.FinishReason.Name(delta.finish.reason))

    def assert_complete(self, num_tokens: int) -> None:
        """Every index once and in order, and exactly one terminal."""
        assert self.indexes == list(range(num_tokens)), f"{len(self.indexes)} tokens, then {self.finish}"
        assert len(self.token_ids) == num_tokens
        assert self.terminals == ["FINISH_REASON_MAX_TOKENS"]


def request(text: str, *, adapter: str | None = None, max_tokens: int = 16, **fields) -> generation_pb2.SubmitRequest:
    """Greedy, for exactly ``max_tokens`` tokens."""
    stop = sampling_pb2.StopCriteria(max_tokens=max_tokens, ignore_eos=True)
    built = generation_pb2.SubmitRequest(text=text, sampling=GREEDY, stop=stop, **fields)
    if adapter is not None:
        built.adapter.name = adapter
    return built


def channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)


async def stream_once(stub: Any, submit: generation_pb2.SubmitRequest) -> Stream:
    stream = Stream()
    async for response in stub.SubmitStream(inference_pb2.SubmitStreamRequest(request=submit), timeout=120):
        if response.WhichOneof("event") == "delta":
            stream.take(response.delta)
    return stream


class Session:
    """One session with many requests; read everything with ``run``."""

    def __init__(
        self, open_channel: grpc.aio.Channel, *, token_credit: int | None = None, token: str | None = None
    ) -> None:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(open_channel)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.call = stub.Session(timeout=120, metadata=metadata)
        self.streams: dict[int, Stream] = {}
        self._open = session_pb2.SessionOpen(initial_token_credit=token_credit)

    async def start(self) -> None:
        await self.call.write(session_pb2.SessionRequest(open=self._open))
        assert (await self.call.read()).WhichOneof("frame") == "opened"

    async def submit(self, handle: int, submit: generation_pb2.SubmitRequest) -> None:
        self.streams[handle] = Stream()
        await self.call.write(
            session_pb2.SessionRequest(submit=session_pb2.SessionSubmit(handle=handle, request=submit))
        )

    async def read_all(self) -> None:
        """Reads until every submitted request has had its terminal, then half-closes and waits for the end."""
        while any(not stream.terminals for stream in self.streams.values()):
            response = await self.call.read()
            assert isinstance(response, session_pb2.SessionResponse), "the session ended before its requests"
            self.take(response)
        await self.call.done_writing()
        while isinstance(response := await self.call.read(), session_pb2.SessionResponse):
            self.take(response)
        assert await self.call.code() == grpc.StatusCode.OK

    def take(self, response: session_pb2.SessionResponse) -> None:
        if response.HasField("rejected"):
            self.streams[response.rejected.handle].terminals.append(response.rejected.error.reason)
        for delta in response.tokens.deltas:
            self.streams[delta.handle].take(delta)


async def read_cluster(admin_address: str, *, token: str | None = None) -> cluster_pb2.GetClusterResponse:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with channel(admin_address) as open_channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(open_channel)
        return await stub.GetCluster(cluster_pb2.GetClusterRequest(), timeout=10, metadata=metadata)


async def wait_for_idle(admin_address: str, timeout_s: float = 10) -> cluster_pb2.Worker:
    """The worker's state once no sequence runs; AssertionError if its pages or leases do not come back."""
    async with asyncio.timeout(timeout_s):
        while True:
            state = await read_cluster(admin_address)
            worker = state.workers[0]
            if worker.num_running_sequences == 0 and worker.num_pages_kv == 0 and state.num_queued_requests == 0:
                assert worker.num_pages_free + worker.num_pages_adapter == worker.num_pages_total
                assert all(adapter.num_leases == 0 for adapter in worker.adapters)
                return worker
            await asyncio.sleep(0.02)
