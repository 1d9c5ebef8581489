"""A tenant that floods the service does not make another one wait: on the real processes."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import grpc

from loraplex.v1 import generation_pb2, inference_pb2, inference_pb2_grpc, session_pb2
from tests.e2e.conftest import start_all
from tests.e2e.processes import cluster
from tests.e2e.streams import Session, channel, read_cluster, request
from tests.e2e.test_errors import SCOPES, key_file

NUM_FLOOD = 200
NUM_QUIET = 5
NUM_ROUNDS = 5
MAX_SEQUENCES = 64
MAX_SLOWDOWN = 4.0
"""The goal is 2. Measured on two cores, which client, service and flood share: 1.7 to 2.2. By order of arrival: 31."""
PROMPT = "one two three four five six seven eight " * 120
"""960 tokens: what a quiet tenant waits for is mostly the computing of its prompts, also when it is alone."""


async def test_five_requests_beside_two_hundred_of_another_tenant_start_soon(tiny_model, tiny_adapters, tmp_path):
    """Equal shapes, default limits, 64 sequences at once: the flood fills them all and queues the rest."""
    keys = key_file(tmp_path / "keys.json", flood=SCOPES, quiet=SCOPES, operator=["cluster.admin"])
    with cluster(tmp_path / "fairness", tiny_model) as running:
        service = start_all(running, {}, "--auth-keys-file", str(keys), max_sequences=MAX_SEQUENCES)
        async with channel(service.address) as open_channel:
            stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
            await first_token_times(stub)
            alone = [await first_token_times(stub) for _ in range(NUM_ROUNDS)]
            beside = [await times_in_flood(open_channel, service.admin_address) for _ in range(NUM_ROUNDS)]
    ratio = quietest(beside) / quietest(alone)
    assert ratio <= MAX_SLOWDOWN, f"{ratio:.2f} times: alone {figures(alone)}, in the flood {figures(beside)}"


def quietest(rounds: Sequence[Sequence[float]]) -> float:
    """The median of the round that was disturbed least: what else the machine does only adds to a round."""
    return min(statistics.median(times) for times in rounds)


async def times_in_flood(open_channel: grpc.aio.Channel, admin_address: str) -> list[float]:
    """The quiet tenant's times while the flood waits in the queue; ends with the flood gone."""
    flood = Session(open_channel, token="token-flood")
    await flood.start()
    async with asyncio.TaskGroup() as tasks:
        for handle in range(1, NUM_FLOOD + 1):
            await flood.submit(handle, shaped("flood", handle))
        reading = tasks.create_task(flood.read_all())
        await wait_for_queue(admin_address)
        times = await first_token_times(inference_pb2_grpc.InferenceServiceStub(open_channel))
        assert not reading.done(), "the flood was over before the quiet tenant was served"
        await flood.call.write(session_pb2.SessionRequest(cancel=session_pb2.SessionCancel(all=True)))
    await wait_for_silence(admin_address)
    return times


async def first_token_times(stub: Any) -> list[float]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(first_token_s(stub, "quiet", number)) for number in range(NUM_QUIET)]
    return [task.result() for task in running]


async def first_token_s(stub: Any, tenant: str, number: int) -> float:
    """Seconds from the call to the first token; the stream is read to its end."""
    begin = time.perf_counter()
    first_s: float | None = None
    submit = inference_pb2.SubmitStreamRequest(request=shaped(tenant, number))
    async for response in stub.SubmitStream(
        submit, timeout=120, metadata=(("authorization", f"Bearer token-{tenant}"),)
    ):
        if first_s is None and response.WhichOneof("event") == "delta":
            first_s = time.perf_counter() - begin
    assert first_s is not None
    return first_s


def shaped(tenant: str, number: int) -> generation_pb2.SubmitRequest:
    """Prompts of one length, of which no two begin alike; outputs of 96 to 159 tokens."""
    return request(f"{tenant} {number} {time.monotonic_ns()}: {PROMPT}", max_tokens=96 + number * 7 % 64)


async def wait_for_queue(admin_address: str) -> None:
    """Until the queue grows no more: how long the flood's own arrival keeps the frontend busy is not what is timed."""
    async with asyncio.timeout(60):
        num_before = 0
        while True:
            num_queued = (await read_cluster(admin_address, token="token-operator")).num_queued_requests
            if NUM_FLOOD // 4 <= num_queued <= num_before:
                return
            num_before = num_queued
            await asyncio.sleep(0.02)


async def wait_for_silence(admin_address: str) -> None:
    async with asyncio.timeout(60):
        while True:
            state = await read_cluster(admin_address, token="token-operator")
            if not state.num_running_requests and not state.num_queued_requests:
                return
            await asyncio.sleep(0.02)


def figures(rounds: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{statistics.median(times) * 1e3:.0f}" for times in rounds) + " ms"
