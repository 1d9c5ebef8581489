"""Many streams at once, clients that die and clients that do not read: over the real processes."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time

import grpc
import pytest

from loraplex.v1 import inference_pb2_grpc, session_pb2
from tests.e2e.streams import Session, Stream, channel, read_cluster, request, stream_once, wait_for_idle
from tests.e2e.tiny_model import TINY_ADAPTERS

ADAPTERS = (*TINY_ADAPTERS, None)
NUM_TOKENS = 24


def mixed_request(number: int, max_tokens: int = NUM_TOKENS):
    return request(f"Request number {number} says", adapter=ADAPTERS[number % 4], max_tokens=max_tokens)


async def test_64_concurrent_streams_over_one_session_lose_and_repeat_nothing(tiny_service):
    async with channel(tiny_service.address) as open_channel:
        session = Session(open_channel)
        await session.start()
        for handle in range(1, 65):
            await session.submit(handle, mixed_request(handle))
        await session.read_all()
    for stream in session.streams.values():
        stream.assert_complete(NUM_TOKENS)
    worker = await wait_for_idle(tiny_service.admin_address)
    assert worker.max_adapters_in_step == len(TINY_ADAPTERS)
    assert worker.num_mixed_steps > 0


async def test_256_concurrent_calls_lose_and_repeat_nothing(tiny_service):
    async with channel(tiny_service.address) as open_channel, asyncio.TaskGroup() as tasks:
        stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
        running = [tasks.create_task(stream_once(stub, mixed_request(number))) for number in range(256)]
    streams = [task.result() for task in running]
    for stream in streams:
        stream.assert_complete(NUM_TOKENS)
    await wait_for_idle(tiny_service.admin_address)


async def test_the_answer_does_not_depend_on_what_else_is_in_the_batch(tiny_service):
    async with channel(tiny_service.address) as open_channel:
        stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
        alone = [await stream_once(stub, mixed_request(number)) for number in range(8)]
        async with asyncio.TaskGroup() as tasks:
            together = [tasks.create_task(stream_once(stub, mixed_request(number))) for number in range(8)]
    assert [task.result().token_ids for task in together] == [stream.token_ids for stream in alone]
    assert len({tuple(stream.token_ids) for stream in alone}) > 4


KILLED_CLIENT = """
import grpc, sys
from loraplex.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.streams import request
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
submit = request("A client that will be killed", adapter="pirate", max_tokens=1000)
for response in stub.SubmitStream(inference_pb2.SubmitStreamRequest(request=submit)):
    if response.WhichOneof("event") == "delta":
        print(response.delta.first_token, flush=True)
"""


async def test_a_killed_client_frees_its_pages_within_two_steps(real_service):
    """On the real model with 32 other sequences: a step then takes far longer than anything else in this test."""
    async with channel(real_service.address) as open_channel, asyncio.TaskGroup() as tasks:
        session = Session(open_channel)
        await session.start()
        for handle in range(1, 33):
            await session.submit(handle, request(f"Story {handle}", max_tokens=1000))
        reading = tasks.create_task(session.read_all())
        client = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", KILLED_CLIENT, real_service.address],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": "."},
        )
        assert client.stdout is not None
        try:
            await asyncio.to_thread(client.stdout.readline)
            before = await steps_when(real_service, num_running=33)
            client.send_signal(signal.SIGKILL)
            after = await steps_when(real_service, num_running=32)
        finally:
            client.kill()
            client.wait(5)
            client.stdout.close()
        await session.call.write(session_pb2.SessionRequest(cancel=session_pb2.SessionCancel(all=True)))
        await reading
    # The two of the bound, and the one that was under way when the first look was taken.
    assert after - before <= 2 + 1
    assert {tuple(stream.terminals) for stream in session.streams.values()} == {("FINISH_REASON_CANCELLED",)}
    await wait_for_idle(real_service.admin_address)


async def steps_when(service, *, num_running: int) -> int:
    """The worker's step count at the first look at which it runs so many sequences."""
    async with asyncio.timeout(60):
        while True:
            worker = (await read_cluster(service.admin_address)).workers[0]
            if worker.num_running_sequences == num_running:
                return worker.num_steps
            await asyncio.sleep(0.001)


async def test_a_client_that_stops_reading_costs_nobody_else_anything(tiny_service):
    async with channel(tiny_service.address) as one, channel(tiny_service.address) as other:
        quiet = await time_of_streams(other)
        lazy = inference_pb2_grpc.InferenceServiceStub(one).Session(timeout=120)
        await lazy.write(session_pb2.SessionRequest(open=session_pb2.SessionOpen()))
        for handle in range(1, 9):
            submit = session_pb2.SessionSubmit(handle=handle, request=mixed_request(handle, max_tokens=300))
            await lazy.write(session_pb2.SessionRequest(submit=submit))
        beside = await time_of_streams(other)
        lazy.cancel()
    # Eight more sequences share the steps, which costs a little; a stall would cost seconds.
    assert beside < quiet * 3 + 0.5
    await wait_for_idle(tiny_service.admin_address)


async def time_of_streams(open_channel) -> float:
    """Median seconds of five rounds of four streams, each complete."""
    stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(stream_once(stub, mixed_request(number))) for number in range(4)]
        for task in running:
            task.result().assert_complete(NUM_TOKENS)
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds)


async def test_a_session_without_credit_keeps_every_token_until_there_is_some(tiny_service):
    async with channel(tiny_service.address) as open_channel:
        session = Session(open_channel, token_credit=5)
        await session.start()
        await session.submit(1, mixed_request(1))
        while len(session.streams[1].indexes) < 5:
            response = await session.call.read()
            assert isinstance(response, session_pb2.SessionResponse)
            session.take(response)
        await wait_for_idle(tiny_service.admin_address)
        assert len(session.streams[1].indexes) == 5
        await session.call.write(session_pb2.SessionRequest(credit=session_pb2.TokenCredit(num_tokens=1000)))
        await session.read_all()
    session.streams[1].assert_complete(NUM_TOKENS)


async def test_one_cancel_in_a_session_ends_one_request(tiny_service):
    async with channel(tiny_service.address) as open_channel:
        session = Session(open_channel)
        await session.start()
        await session.submit(1, mixed_request(1, max_tokens=1500))
        await session.submit(2, mixed_request(2))
        await session.call.write(session_pb2.SessionRequest(cancel=session_pb2.SessionCancel(handles=[1])))
        await session.read_all()
    assert session.streams[1].terminals == ["FINISH_REASON_CANCELLED"]
    assert session.streams[1].indexes == list(range(len(session.streams[1].indexes)))
    session.streams[2].assert_complete(NUM_TOKENS)
    await wait_for_idle(tiny_service.admin_address)


async def test_n_sequences_differ_by_seed_and_repeat_with_it(tiny_service):
    async def sample(seed: int) -> list[tuple[int, ...]]:
        submit = mixed_request(1)
        submit.sampling.temperature, submit.sampling.seed, submit.sampling.n = 1.0, seed, 4
        async with channel(tiny_service.address) as open_channel:
            answer = await inference_pb2_grpc.InferenceServiceStub(open_channel).Submit(submit, timeout=60)
        assert [output.index for output in answer.outputs] == [0, 1, 2, 3]
        return [tuple(output.token_ids) for output in answer.outputs]

    first, again, other = await sample(1), await sample(1), await sample(2)
    assert first == again
    assert len(set(first)) == 4
    assert first != other


async def test_a_deadline_ends_a_running_request_and_frees_it(tiny_service):
    async with channel(tiny_service.address) as open_channel:
        stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Submit(mixed_request(1, max_tokens=2000), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_for_idle(tiny_service.admin_address)


def test_a_stream_that_repeats_an_index_would_be_noticed():
    """The check behind every test above can fail."""
    stream = Stream(indexes=[0, 1, 1], token_ids=[5, 6, 6], terminals=["FINISH_REASON_MAX_TOKENS"])
    with pytest.raises(AssertionError):
        stream.assert_complete(3)
