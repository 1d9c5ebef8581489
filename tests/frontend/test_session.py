"""The contract at the top of session.proto, line by line, over a real channel."""

import asyncio
import itertools
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from loraplex.v1 import generation_pb2, session_pb2
from loraplex_contract.errors import FailedPrecondition, NotFound
from tests.fakes.fake_scheduler import FakeScheduler, echo
from tests.frontend.service import Session, reason_of, started

MAX_TOKENS = generation_pb2.FINISH_REASON_MAX_TOKENS
CANCELLED = generation_pb2.FINISH_REASON_CANCELLED
ERROR = generation_pb2.FINISH_REASON_ERROR


def prompt(*ids: int, **fields) -> generation_pb2.SubmitRequest:
    return generation_pb2.SubmitRequest(tokens=generation_pb2.TokenIds(ids=ids or (10, 11, 12)), **fields)


# --- 1: Open first ---


@pytest.mark.parametrize(
    "frame",
    [
        {"ping": session_pb2.Ping(nonce=1)},
        {"submit": session_pb2.SessionSubmit(handle=1, request=prompt())},
        {},
    ],
)
async def test_a_session_that_does_not_begin_with_open_ends_as_a_protocol_violation(service, frame):
    session = Session(service)
    await session.send(**frame)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await session.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == "PROTOCOL_VIOLATION"


@pytest.mark.parametrize("frame", [{"open": session_pb2.SessionOpen()}, {}])
async def test_a_second_open_or_an_empty_frame_ends_the_session(service, frame):
    session = Session(service)
    await session.open()
    await session.send(**frame)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await session.next()
    assert reason_of(caught.value) == "PROTOCOL_VIOLATION"


async def test_opened_tells_the_limits_of_the_session(service):
    opened = await Session(service).open()
    assert opened.max_in_flight == 256
    assert opened.heartbeat.ToMilliseconds() == 1000


async def test_bad_stream_options_are_refused_at_open(service):
    session = Session(service)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await session.open(stream=generation_pb2.StreamOptions(min_tokens=2))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


# --- 2: handles ---


async def test_a_handle_used_twice_is_rejected_and_the_first_request_goes_on(service):
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await session.submit(1, prompt())
    kind, frame = await session.next()
    assert (kind, frame.handle, frame.error.reason) == ("rejected", 1, "HANDLE_IN_USE")
    await service.fake.begin(submit)
    await service.fake.tokens((submit.handle, 0, 0, [20]))
    await service.fake.end(submit.handle)
    gathered = (await session.until_finished(1))[1]
    assert gathered.kinds[:2] == ["accepted", "started"]
    assert gathered.token_ids == [20]
    await session.submit(1, prompt())
    kind, frame = await session.next()
    assert frame.error.reason == "HANDLE_IN_USE", "also after the first has ended"


async def test_handle_zero_is_rejected(service):
    session = Session(service)
    await session.open()
    await session.submit(0, prompt())
    kind, frame = await session.next()
    assert (kind, frame.error.reason) == ("rejected", "HANDLE_INVALID")


# --- 3: one terminal, in order, and nobody else is harmed ---


async def test_a_request_is_accepted_then_started_then_its_tokens_come_then_one_finish(model_path, tmp_path):
    async with started(model_path, tmp_path, script=echo()) as service:
        session = Session(service)
        await session.open()
        await session.submit(5, prompt(30, 31, 32, 33))
        gathered = (await session.until_finished(5))[5]
    assert gathered.kinds[:2] == ["accepted", "started"]
    assert set(gathered.kinds[2:]) == {"delta"}
    assert gathered.token_ids == [30, 31, 32, 33]
    assert gathered.indexes == [0, 1, 2, 3]
    assert [finish.reason for finish in gathered.finishes] == [MAX_TOKENS]


async def test_each_of_n_sequences_has_its_own_finish(model_path, tmp_path):
    async with started(model_path, tmp_path, script=echo()) as service:
        session = Session(service)
        await session.open()
        request = prompt(30, 31)
        request.sampling.n = 3
        await session.submit(1, request)
        finished: list[int] = []
        while len(finished) < 3:
            _, frame = await session.next()
            finished += [d.index for d in getattr(frame, "deltas", ()) if d.HasField("finish")]
    assert sorted(finished) == [0, 1, 2]


async def test_a_refused_request_is_rejected_with_the_error_in_band_and_the_session_lives_on(service):
    session = Session(service)
    await session.open()
    await session.submit(1, generation_pb2.SubmitRequest())
    kind, frame = await session.next()
    assert (kind, frame.error.reason) == ("rejected", "PROMPT_MISSING")
    assert [violation.field for violation in frame.error.violations] == ["prompt"]
    await session.submit(2, prompt())
    submit = await service.fake.next_submit()
    await service.fake.reject(submit.handle, NotFound("adapter: unknown", reason="ADAPTER_NOT_FOUND"))
    kind, frame = await session.next()
    assert (kind, frame.handle, frame.error.reason) == ("rejected", 2, "ADAPTER_NOT_FOUND")
    assert frame.error.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_failure_after_acceptance_is_the_finish_of_that_request_alone(service):
    session = Session(service)
    await session.open()
    for handle in (1, 2):
        await session.submit(handle, prompt())
    first, second = await service.fake.next_submit(), await service.fake.next_submit()
    for submit in (first, second):
        await service.fake.begin(submit)
        await service.fake.tokens((submit.handle, 0, 0, [20]))
    await service.fake.end(first.handle, error=FailedPrecondition("broken", reason="ADAPTER_FAILED"))
    await service.fake.tokens((second.handle, 0, 1, [21]))
    await service.fake.end(second.handle)
    gathered = await session.until_finished(1, 2)
    assert gathered[1].finishes[0].reason == ERROR
    assert gathered[1].finishes[0].error.reason == "ADAPTER_FAILED"
    assert gathered[1].token_ids == [20]
    assert gathered[2].finishes[0].reason == MAX_TOKENS
    assert gathered[2].token_ids == [20, 21]


@pytest.mark.parametrize("first_token", [0, 2])
async def test_a_repeat_or_a_gap_from_the_scheduler_ends_the_request_as_our_bug_and_cancels_it(service, first_token):
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    service.fake.answers_cancels = False
    await service.fake.begin(submit)
    await service.fake.tokens((submit.handle, 0, 0, [20]))
    await service.fake.tokens((submit.handle, 0, first_token, [21]))
    gathered = (await session.until_finished(1))[1]
    assert gathered.token_ids == [20]
    assert (gathered.finishes[0].reason, gathered.finishes[0].error.reason) == (ERROR, "TOKEN_ORDER")
    await service.fake.until(lambda: [cancel.handle for cancel in service.fake.cancels] == [submit.handle])


async def test_the_tokens_of_one_turn_of_the_scheduler_come_in_one_frame(service):
    session = Session(service)
    await session.open()
    submits = []
    for handle in (1, 2, 3):
        await session.submit(handle, prompt())
        submits.append(await service.fake.next_submit())
        await service.fake.begin(submits[-1])
    for _ in range(6):
        await session.next()
    await service.fake.tokens(*((submit.handle, 0, 0, [20]) for submit in submits))
    kind, frame = await session.next()
    assert kind == "tokens"
    assert sorted(delta.handle for delta in frame.deltas) == [1, 2, 3]
    assert frame.step > 0


# --- 4: cancel ---


async def test_cancel_ends_exactly_the_named_requests_and_repeating_it_is_harmless(service):
    session = Session(service)
    await session.open()
    for handle in (1, 2):
        await session.submit(handle, prompt())
    first, second = await service.fake.next_submit(), await service.fake.next_submit()
    for submit in (first, second):
        await service.fake.begin(submit)
    await session.cancel(1, 99)
    await session.cancel(1)
    assert (await finish_of(session, 1)).reason == CANCELLED
    await service.fake.end(second.handle)
    assert (await finish_of(session, 2)).reason == MAX_TOKENS
    assert {cancel.handle for cancel in service.fake.cancels} == {first.handle}


async def finish_of(session: Session, handle: int) -> generation_pb2.Finish:
    while True:
        kind, frame = await session.next()
        assert kind is not None
        for delta in frame.deltas if kind == "tokens" else ():
            if delta.handle == handle and delta.HasField("finish"):
                finish: generation_pb2.Finish = delta.finish
                return finish


async def test_cancel_all_ends_every_request(service):
    session = Session(service)
    await session.open()
    for handle in (1, 2):
        await session.submit(handle, prompt())
        await service.fake.begin(await service.fake.next_submit())
    await session.send(cancel=session_pb2.SessionCancel(all=True))
    gathered = await session.until_finished(1, 2)
    assert [gathered[handle].finishes[0].reason for handle in (1, 2)] == [CANCELLED, CANCELLED]


async def test_a_request_that_waits_for_the_scheduler_can_be_cancelled_too(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=30) as service:
        session = Session(service)
        await session.open()
        await session.submit(1, prompt())
        await session.submit(2, prompt())
        await session.cancel(1, 2)
        rejected = [await session.next() for _ in range(2)]
    assert sorted(frame.handle for _, frame in rejected) == [1, 2]
    assert {frame.error.code for _, frame in rejected} == {grpc.StatusCode.CANCELLED.value[0]}
    assert fake.submits == []


# --- 5: half-close and loss ---


async def test_a_half_close_lets_what_runs_finish_and_ends_ok(service):
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await session.call.done_writing()
    await service.fake.begin(submit)
    await service.fake.tokens((submit.handle, 0, 0, [20]))
    await service.fake.end(submit.handle)
    gathered = (await session.until_finished(1))[1]
    assert gathered.token_ids == [20]
    assert await session.next() == (None, None)
    assert await session.status() == grpc.StatusCode.OK


async def test_a_half_close_of_an_idle_session_ends_it_ok(service):
    session = Session(service)
    await session.open()
    await session.call.done_writing()
    assert await session.next() == (None, None)
    assert await session.status() == grpc.StatusCode.OK


async def test_a_cancelled_call_cancels_every_request_upstream(service):
    session = Session(service)
    await session.open()
    handles = []
    for handle in (1, 2):
        await session.submit(handle, prompt())
        submit = await service.fake.next_submit()
        await service.fake.begin(submit)
        handles.append(submit.handle)
    session.call.cancel()
    await service.fake.until(lambda: {cancel.handle for cancel in service.fake.cancels} == set(handles))


# --- 6: credit ---


async def test_without_token_credit_nothing_is_sent_and_nothing_is_lost(service):
    session = Session(service)
    await session.open(initial_token_credit=2)
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    for index in range(6):
        await service.fake.tokens((submit.handle, 0, index, [20 + index]))
    await service.fake.end(submit.handle)
    received: list[int] = []
    while len(received) < 2:
        kind, frame = await session.next()
        received += [t for delta in frame.deltas for t in delta.token_ids] if kind == "tokens" else []
    await session.send(ping=session_pb2.Ping(nonce=77))
    kind, frame = await session.next()
    assert (kind, frame.nonce) == ("pong", 77), "at zero credit no token comes before the pong"
    assert received == [20, 21]
    await session.send(credit=session_pb2.TokenCredit(num_tokens=1))
    kind, frame = await session.next()
    assert [t for delta in frame.deltas for t in delta.token_ids] == [22]
    await session.send(credit=session_pb2.TokenCredit(num_tokens=100))
    kind, frame = await session.next()
    assert [(delta.first_token, list(delta.token_ids)) for delta in frame.deltas] == [(3, [23, 24, 25])], "merged"
    assert frame.deltas[0].finish.reason == MAX_TOKENS


async def test_text_never_runs_ahead_of_credited_tokens_and_all_of_it_comes(service, tokenizer):
    ids = tokenizer.encode_text("Hello, world! How are you today?")
    session = Session(service)
    await session.open(initial_token_credit=0)
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    await service.fake.tokens((submit.handle, 0, 0, ids[:4]))
    await service.fake.tokens((submit.handle, 0, 4, ids[4:]))
    await service.fake.end(submit.handle)
    text, count = "", 0
    for _ in ids:
        await session.send(credit=session_pb2.TokenCredit(num_tokens=1))
        kind = None
        while kind != "tokens":
            kind, frame = await session.next()
        (delta,) = frame.deltas
        count += delta.num_tokens
        text += delta.text
        assert len(text) <= len(tokenizer.decode(ids[:count]))
    assert text == "Hello, world! How are you today?"


async def test_more_requests_than_the_session_may_have_open_are_rejected(model_path, tmp_path):
    async with started(model_path, tmp_path, max_in_flight=2) as service:
        session = Session(service)
        opened = await session.open()
        assert opened.max_in_flight == 2
        for handle in (1, 2, 3):
            await session.submit(handle, prompt())
        kind, frame = await session.next()
        assert (kind, frame.handle, frame.error.reason) == ("rejected", 3, "SESSION_FULL")
        assert frame.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert frame.error.HasField("retry_delay")
        submit = await service.fake.next_submit()
        await service.fake.begin(submit)
        await service.fake.end(submit.handle)
        await finish_of(session, 1)
        while session.credits == 0:
            response = await session.read()
            session.credits += response.credit.num_requests
        assert session.credits == 1, "one place is free again"
        await session.submit(4, prompt())
        await service.fake.until(lambda: len(service.fake.submits) == 3)


# --- 7: heartbeat ---


async def test_heartbeats_come_at_least_as_often_as_promised(model_path, tmp_path):
    async with started(model_path, tmp_path, heartbeat_s=0.1) as service:
        session = Session(service)
        await session.open()
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for _ in range(5):
            response = await session.read()
            assert response.WhichOneof("frame") == "heartbeat"
            times.append(loop.time())
    gaps = sorted(b - a for a, b in itertools.pairwise(times))
    assert gaps[len(gaps) // 2] <= 0.1


async def test_ping_is_answered_with_its_nonce(service):
    session = Session(service)
    await session.open()
    await session.send(ping=session_pb2.Ping(nonce=1 << 63))
    assert (await session.next())[1].nonce == 1 << 63


# --- 8: GoAway ---


async def test_go_away_lets_running_requests_finish_and_rejects_new_ones(model_path, tmp_path):
    async with started(model_path, tmp_path, drain_grace_s=10) as service:
        session = Session(service)
        await session.open()
        await session.submit(1, prompt())
        submit = await service.fake.next_submit()
        await service.fake.begin(submit)
        for _ in range(2):
            await session.next()
        service.frontend.stop()
        kind, frame = await session.next()
        assert kind == "go_away"
        assert 0 < frame.time_left.ToNanoseconds() <= 10e9
        assert frame.reason.reason == "DRAINING"
        await session.submit(2, prompt())
        kind, frame = await session.next()
        assert (kind, frame.handle, frame.error.reason) == ("rejected", 2, "DRAINING")
        assert frame.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await service.fake.tokens((submit.handle, 0, 0, [20]))
        await service.fake.end(submit.handle)
        gathered = (await session.until_finished(1))[1]
        assert gathered.token_ids == [20]
        assert await session.next() == (None, None)
        assert await session.status() == grpc.StatusCode.OK


async def test_what_runs_past_the_grace_ends_with_an_error_and_is_cancelled_upstream(model_path, tmp_path):
    async with started(model_path, tmp_path, drain_grace_s=0.1) as service:
        service.fake.answers_cancels = False
        session = Session(service)
        await session.open()
        await session.submit(1, prompt())
        submit = await service.fake.next_submit()
        await service.fake.begin(submit)
        await service.fake.tokens((submit.handle, 0, 0, [20]))
        service.frontend.stop()
        gathered = (await session.until_finished(1))[1]
        assert gathered.token_ids == [20]
        assert gathered.finishes[0].error.reason == "DRAINING"
        await service.fake.until(lambda: service.fake.num_goodbyes == 1)
    assert [cancel.handle for cancel in service.fake.cancels] == [submit.handle]


# --- gathering ---


async def test_stream_options_gather_tokens_until_there_are_enough_or_it_ends(service):
    session = Session(service)
    stream = generation_pb2.StreamOptions(min_tokens=4, max_delay=Duration(seconds=1))
    await session.open(stream=stream)
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    for index in range(6):
        await service.fake.tokens((submit.handle, 0, index, [20 + index]))
    await service.fake.end(submit.handle)
    gathered = (await session.until_finished(1))[1]
    assert gathered.token_ids == [20, 21, 22, 23, 24, 25]
    assert gathered.num_deltas <= 2


async def test_gathering_never_holds_tokens_longer_than_the_delay(service):
    session = Session(service)
    stream = generation_pb2.StreamOptions(min_tokens=1000, max_delay=Duration(nanos=50_000_000))
    await session.open(stream=stream)
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    await service.fake.tokens((submit.handle, 0, 0, [20]))
    kinds = [(await session.next())[0] for _ in range(3)]
    assert kinds == ["accepted", "started", "tokens"]


# --- the scheduler is lost ---


async def test_when_the_scheduler_is_lost_every_open_request_ends_and_new_ones_run_after(service):
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    await session.submit(2, prompt())
    first = await service.fake.next_submit()
    await service.fake.next_submit()
    await service.fake.begin(first)
    await session.next()
    await session.next()
    service.fake.drop_link()
    gathered = await session.until_finished(1, 2)
    assert gathered[1].finishes[0].error.reason == "SCHEDULER_LOST"
    assert gathered[1].finishes[0].error.HasField("retry_delay")
    assert gathered[2].rejection.reason == "SCHEDULER_LOST"
    await session.submit(3, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    await service.fake.end(submit.handle)
    assert (await session.until_finished(3))[3].finishes[0].reason == MAX_TOKENS


async def test_a_silent_scheduler_counts_as_lost(model_path, tmp_path):
    fake = FakeScheduler(heartbeat_s=None)
    async with started(model_path, tmp_path, fake=fake) as service:
        session = Session(service)
        await session.open()
        await session.submit(1, prompt())
        await service.fake.next_submit()
        gathered = await session.until_finished(1)
    assert gathered[1].rejection.reason == "SCHEDULER_LOST"


async def test_a_pause_of_the_frontend_itself_is_not_taken_for_a_lost_scheduler(service):
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    submit = await service.fake.next_submit()
    await service.fake.begin(submit)
    time.sleep(1.0)  # noqa: ASYNC251
    await service.fake.tokens((submit.handle, 0, 0, [20]))
    await service.fake.end(submit.handle)
    gathered = (await session.until_finished(1))[1]
    assert (gathered.token_ids, gathered.finishes[0].reason) == ([20], MAX_TOKENS)
    assert len(service.fake.hellos) == 1


async def test_text_of_an_exception_never_reaches_the_client(service, monkeypatch):
    secret = "the secret in the exception"

    def explode(*args, **kwargs):
        raise RuntimeError(secret)

    monkeypatch.setattr("loraplex_frontend.submission.check_submit", explode)
    session = Session(service)
    await session.open()
    await session.submit(1, prompt())
    kind, frame = await session.next()
    assert (kind, frame.error.reason) == ("rejected", "INTERNAL")
    assert frame.error.metadata["incident"]
    assert secret not in str(frame)
