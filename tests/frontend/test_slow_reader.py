"""A client that does not read costs itself its requests, and nobody else anything."""

import asyncio
from typing import Any

import grpc
import pytest

from loraplex.v1 import generation_pb2, session_pb2
from loraplex_frontend.outbox import MAX_QUEUED_FRAMES, Outbox
from loraplex_frontend.request import Coalescing
from tests.frontend.service import Session, started
from tests.frontend.test_inference import prompt, streamed


async def test_past_the_cap_a_session_without_credit_loses_its_requests_and_others_go_on(model_path, tmp_path):
    async with started(model_path, tmp_path, max_stream_bytes=4_096) as service:
        lazy, eager = Session(service), Session(service)
        await lazy.open(initial_token_credit=0)
        await eager.open()
        await lazy.submit(1, prompt())
        slow = await service.fake.next_submit()
        await eager.submit(1, prompt())
        fast = await service.fake.next_submit()
        for submit in (slow, fast):
            await service.fake.begin(submit)
        service.fake.answers_cancels = False
        for first in range(0, 2_000, 100):
            ids = [20] * 100
            await service.fake.tokens((slow.handle, 0, first, ids), (fast.handle, 0, first, ids))
        await service.fake.end(fast.handle)
        gathered = (await eager.until_finished(1))[1]
        assert gathered.indexes == list(range(2_000))
        gathered = (await lazy.until_finished(1))[1]
        assert gathered.finishes[0].error.reason == "SLOW_CONSUMER"
        assert gathered.finishes[0].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert gathered.indexes == []
        await service.fake.until(lambda: [cancel.handle for cancel in service.fake.cancels] == [slow.handle])
        await lazy.submit(2, prompt())
        again = await service.fake.next_submit()
        await service.fake.begin(again)
        await service.fake.end(again.handle)
        assert (await lazy.until_finished(2))[2].finishes[0].reason == generation_pb2.FINISH_REASON_MAX_TOKENS


async def test_a_finished_answer_that_waits_for_credit_survives_another_requests_overflow(model_path, tmp_path):
    async with started(model_path, tmp_path, max_stream_bytes=4_096) as service:
        session = Session(service)
        await session.open(initial_token_credit=0)
        submits = []
        for handle in (1, 2):
            await session.submit(handle, prompt())
            submits.append(await service.fake.next_submit())
            await service.fake.begin(submits[-1])
        await service.fake.tokens((submits[0].handle, 0, 0, [20, 21]))
        await service.fake.end(submits[0].handle)
        await service.fake.tokens((submits[1].handle, 0, 0, [20] * 2_000))
        await session.send(credit=session_pb2.TokenCredit(num_tokens=2))
        gathered = await session.until_finished(1, 2)
    assert gathered[1].token_ids == [20, 21]
    assert gathered[1].finishes[0].reason == generation_pb2.FINISH_REASON_MAX_TOKENS
    assert gathered[2].finishes[0].error.reason == "SLOW_CONSUMER"


@pytest.mark.slow
async def test_a_stream_that_nobody_reads_is_bounded_and_ends(model_path, tmp_path):
    """The transport takes some MiB before it pushes back; past that and the cap the request is given up."""
    async with started(model_path, tmp_path, max_stream_bytes=1 << 20) as service:
        other = grpc.aio.insecure_channel(
            service.frontend.ports["listen"], options=[("grpc.use_local_subchannel_pool", 1)]
        )
        async with other:
            raw: Any = other.unary_stream("/loraplex.v1.InferenceService/SubmitStream")
            call = raw(streamed(prompt()).SerializeToString())
            submit = await service.fake.next_submit()
            await service.fake.begin(submit)
            first, ids = 0, [20] * 10_000
            async with asyncio.timeout(30):
                while not service.fake.cancels:
                    await service.fake.tokens((submit.handle, 0, first, ids))
                    first += len(ids)
                    assert first < 20_000_000, "nothing bounds what is kept"
            beside, up = service.inference.Submit(prompt()), await service.fake.next_submit()
            await service.fake.begin(up)
            await service.fake.tokens((up.handle, 0, 0, [30]))
            await service.fake.end(up.handle)
            assert list((await beside).outputs[0].token_ids) == [30]
            call.cancel()


async def test_a_client_that_sends_without_reading_is_not_read_from(service):
    outbox = Outbox(coalescing=Coalescing(), credit=None, max_bytes=1)
    for number in range(MAX_QUEUED_FRAMES + 1):
        outbox.put(number)
    waiting = asyncio.ensure_future(outbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(outbox.take(0.0).frames) == MAX_QUEUED_FRAMES + 1
    await asyncio.wait_for(waiting, 1)


async def test_sessions_remember_only_so_many_scattered_handles(service, monkeypatch):
    from loraplex_frontend.handle_set import HandleSet

    handles = HandleSet(3)
    assert all(handles.add(handle) for handle in range(1, 1_000))
    assert not handles.is_full, "counting up costs nothing"
    assert not handles.add(999)
    assert all(handles.add(handle) for handle in (5_000, 6_000, 7_000))
    assert handles.is_full
    assert not handles.add(6_000)
