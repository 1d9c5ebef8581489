"""Submit, SubmitStream, Attach and Cancel over a real channel."""

import asyncio
import os
import signal
import subprocess
import sys

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.v1 import adapter_ref_pb2, generation_pb2, inference_pb2, sampling_pb2
from loraplex.worker.v1 import frontend_link_pb2, sequence_pb2
from loraplex_contract import token_bytes
from loraplex_contract.errors import DeadlineExceeded, NotFound, ResourceExhausted
from tests.fakes.fake_scheduler import FakeScheduler, echo
from tests.frontend.service import Service, fields_of, has_retry_info, info_of, reason_of, started
from tests.frontend.test_stop_strings import reference
from tests.frontend.tiny_model import CONTEXT, EOS_ID

STOP_STRING = generation_pb2.FINISH_REASON_STOP_STRING
MAX_TOKENS = generation_pb2.FINISH_REASON_MAX_TOKENS


def prompt(*ids: int, **fields) -> generation_pb2.SubmitRequest:
    return generation_pb2.SubmitRequest(tokens=generation_pb2.TokenIds(ids=ids or (10, 11, 12)), **fields)


def streamed(request: generation_pb2.SubmitRequest, **fields) -> inference_pb2.SubmitStreamRequest:
    return inference_pb2.SubmitStreamRequest(request=request, **fields)


async def submitted(service: Service, request: generation_pb2.SubmitRequest, **call):
    """A Submit under way, and what the scheduler heard of it."""
    running = service.inference.Submit(request, **call)
    return running, await service.fake.next_submit()


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# --- what goes up ---


async def test_everything_of_a_request_reaches_the_scheduler(service):
    request = prompt(10, 11, request_id="r-1")
    request.adapter.composition.add(name="a", version="2", weight=0.5)
    request.adapter.composition.add(name="b")
    request.sampling.CopyFrom(
        sampling_pb2.SamplingParams(
            temperature=0.5,
            top_k=3,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-1,
            frequency_penalty=1,
            logit_bias={7: 1.5, 3: -1},
            allowed_token_ids=[1, 2],
            banned_token_ids=[5],
            seed=99,
            n=2,
        )
    )
    request.stop.CopyFrom(
        sampling_pb2.StopCriteria(max_tokens=9, min_tokens=2, stop_token_ids=[20, 19], time_limit=Duration(seconds=3))
    )
    request.output.top_logprobs, request.output.prompt_logprobs = 4, 5
    request.scheduling.priority = -7
    request.scheduling.queue_timeout.seconds = 2
    request.scheduling.first_token_timeout.seconds = 4
    request.scheduling.timeout.seconds = 8
    call, up = await submitted(service, request)
    call.cancel()
    assert (up.tenant, up.request_id, up.n, up.priority) == ("default", "r-1", 2, -7)
    assert list(token_bytes.unpack(up.prompt_ids_le32)) == [10, 11]
    assert [(a.name, a.version, a.weight) for a in up.adapters] == [("a", "2", 0.5), ("b", "", 1.0)]
    sampling = up.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 3, 0.25, 0.125)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -1, 1)
    assert list(token_bytes.unpack(sampling.logit_bias_ids_le32)) == [3, 7]
    assert list(sampling.logit_bias_values) == [-1, 1.5]
    assert list(token_bytes.unpack(sampling.allowed_token_ids_le32)) == [1, 2]
    assert list(token_bytes.unpack(sampling.banned_token_ids_le32)) == [5]
    assert (sampling.seed, sampling.top_logprobs, sampling.prompt_logprobs) == (99, 4, 5)
    assert list(token_bytes.unpack(up.stop.stop_token_ids_le32)) == [EOS_ID, 19, 20]
    assert (up.stop.max_tokens, up.stop.min_tokens) == (9, 2)
    assert (up.time_limit.seconds, up.queue_timeout.seconds, up.first_token_timeout.seconds) == (3, 2, 4)
    assert 7 < up.timeout.ToNanoseconds() / 1e9 <= 8


async def test_absent_options_stay_absent_or_get_their_default(service):
    call, up = await submitted(service, prompt())
    call.cancel()
    assert not up.sampling.HasField("seed")
    assert not up.sampling.HasField("top_logprobs")
    assert not up.stop.HasField("max_tokens")
    assert (up.sampling.temperature, up.sampling.top_p, up.n) == (1, 1, 1)
    assert up.request_id, "the server mints one"
    assert up.timeout.seconds > 3_500, "the deployment's longest"
    assert not up.HasField("time_limit")


async def test_ignore_eos_leaves_the_models_own_ids_out(service):
    call, up = await submitted(service, prompt(stop=sampling_pb2.StopCriteria(ignore_eos=True)))
    call.cancel()
    assert up.stop.stop_token_ids_le32 == b""


async def test_text_and_chat_are_tokenised(service, tokenizer):
    call, up = await submitted(service, generation_pb2.SubmitRequest(text="Hello <|im_end|>"))
    call.cancel()
    assert list(token_bytes.unpack(up.prompt_ids_le32)) == tokenizer.encode_text("Hello <|im_end|>")
    message = generation_pb2.ChatMessage(role="user", content="Hello")
    call, up = await submitted(service, generation_pb2.SubmitRequest(chat=generation_pb2.Chat(messages=[message])))
    call.cancel()
    wanted = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert list(token_bytes.unpack(up.prompt_ids_le32)) == tokenizer.encode_template(wanted)


async def test_what_is_wanted_together_goes_up_in_one_frame(service):
    wanted = [f"r{number}" for number in range(50)]
    await failure(service.inference.Cancel(inference_pb2.CancelRequest(request_ids=wanted)))
    assert [cancel.request_id for cancel in service.fake.cancels] == wanted
    assert service.fake.num_upward == 1


# --- what comes down ---


async def test_submit_answers_with_prompt_info_text_ids_and_usage(service, tokenizer):
    ids = tokenizer.encode_text("Hello, world!")
    request = prompt(10, 11, request_id="r-2")
    request.adapter.name = "sql"
    call, up = await submitted(service, request)
    await service.fake.begin(up, seed=5)
    await service.fake.tokens((up.handle, 0, 0, ids))
    await service.fake.end(up.handle, num_output_tokens=len(ids))
    answer = await call
    assert (answer.request_id, answer.prompt.num_prompt_tokens, answer.prompt.seed) == ("r-2", 2, 5)
    assert answer.prompt.model == "tiny"
    assert [(a.name, a.version, len(a.digest)) for a in answer.prompt.adapters] == [("sql", 1, 64)]
    (output,) = answer.outputs
    assert (output.text, list(output.token_ids)) == ("Hello, world!", ids)
    assert output.finish.reason == MAX_TOKENS
    assert output.finish.usage.num_output_tokens == len(ids)


async def test_a_stream_has_accepted_then_prompt_then_deltas(service):
    call = service.inference.SubmitStream(streamed(prompt(request_id="r-3")))
    up = await service.fake.next_submit()
    await service.fake.begin(up, queue_position=4)
    first, second = await call.read(), await call.read()
    assert (first.accepted.request_id, first.accepted.queue_position) == ("r-3", 4)
    assert second.prompt.num_prompt_tokens == 3
    await service.fake.tokens((up.handle, 0, 0, [20]))
    assert list((await call.read()).delta.token_ids) == [20]
    await service.fake.end(up.handle)
    last = (await call.read()).delta
    assert (last.finish.reason, last.first_token, last.num_tokens) == (MAX_TOKENS, 1, 0)
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_text_and_ids_come_only_where_asked_for(service, tokenizer):
    ids = tokenizer.encode_text("Hello")
    request = prompt()
    request.output.text = False
    call, up = await submitted(service, request)
    await service.fake.begin(up)
    await service.fake.tokens((up.handle, 0, 0, ids))
    await service.fake.end(up.handle)
    output = (await call).outputs[0]
    assert (output.text, list(output.token_ids)) == ("", ids)
    request.output.text, request.output.token_ids = True, False
    call = service.inference.SubmitStream(streamed(request))
    up = await service.fake.next_submit()
    await service.fake.begin(up)
    await service.fake.tokens((up.handle, 0, 0, ids))
    await service.fake.end(up.handle)
    deltas = [event.delta async for event in call if event.HasField("delta")]
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert sum(delta.num_tokens for delta in deltas) == len(ids)
    assert not any(delta.token_ids for delta in deltas)


async def test_logprobs_of_prompt_and_output_come_where_asked_for(service):
    request = prompt()
    request.output.top_logprobs, request.output.prompt_logprobs = 1, 0
    call, up = await submitted(service, request)
    await service.fake.begin(up)
    of_prompt = [sequence_pb2.Logprobs(), sequence_pb2.Logprobs(logprob=-1, rank=2)]
    await service.fake.say(prompt_logprobs=[frontend_link_pb2.LinkPromptLogprobs(handle=up.handle, tokens=of_prompt)])
    entry = sequence_pb2.Logprobs(logprob=-0.5, rank=1, top_ids_le32=token_bytes.pack([20]), top_logprobs=[-0.5])
    await service.fake.tokens((up.handle, 0, 0, [20]), logprobs={0: [entry]})
    await service.fake.end(up.handle)
    answer = await call
    assert [found.rank for found in answer.prompt.logprobs] == [0, 2]
    (found,) = answer.outputs[0].logprobs
    assert (found.logprob, found.rank, list(found.top_token_ids), list(found.top_logprobs)) == (-0.5, 1, [20], [-0.5])


@pytest.mark.parametrize(
    ("stop_ids", "stopped_by", "reason"),
    [
        ([], EOS_ID, generation_pb2.FINISH_REASON_EOS),
        ([50], 50, generation_pb2.FINISH_REASON_STOP_TOKEN),
        ([EOS_ID], EOS_ID, generation_pb2.FINISH_REASON_STOP_TOKEN),
    ],
)
async def test_the_models_own_end_is_told_apart_from_a_stop_token(service, stop_ids, stopped_by, reason):
    call, up = await submitted(service, prompt(stop=sampling_pb2.StopCriteria(stop_token_ids=stop_ids)))
    await service.fake.begin(up)
    await service.fake.end(up.handle, reason=generation_pb2.FINISH_REASON_STOP_TOKEN, stop_token_id=stopped_by)
    finish = (await call).outputs[0].finish
    assert (finish.reason, finish.stop_token_id) == (reason, stopped_by)


async def test_a_character_split_over_turns_comes_whole(service, tokenizer):
    ids = tokenizer.encode_text("a🦊b")
    call = service.inference.SubmitStream(streamed(prompt()))
    up = await service.fake.next_submit()
    await service.fake.begin(up)
    texts = []
    await call.read()
    await call.read()
    for index, token_id in enumerate(ids):
        await service.fake.tokens((up.handle, 0, index, [token_id]))
        texts.append((await call.read()).delta.text)
    await service.fake.end(up.handle)
    assert texts == ["a", "", "", "", "🦊", "b"]


# --- stop strings ---


async def run_with_stops(service: Service, ids, sizes, stop) -> tuple[generation_pb2.SequenceDelta, str, int]:
    """(last delta, the text of all, tokens of all) with the ids in turns of these sizes."""
    call = service.inference.SubmitStream(streamed(prompt(stop=stop)))
    up = await service.fake.next_submit()
    await service.fake.begin(up)
    start = 0
    for size in [*sizes, len(ids)]:
        if ids[start : start + size]:
            await service.fake.tokens((up.handle, 0, start, ids[start : start + size]))
        start += size
    await service.fake.end(up.handle, num_output_tokens=len(ids))
    deltas = [event.delta async for event in call if event.HasField("delta")]
    return deltas[-1], "".join(delta.text for delta in deltas), sum(delta.num_tokens for delta in deltas)


async def test_a_stop_string_across_tokens_cuts_text_and_tokens_and_tells_the_scheduler(service, tokenizer):
    ids = tokenizer.encode_text("one XYZ two")
    assert not any("XYZ" in tokenizer.decode([i]) for i in ids), "the stop string is split"
    stop = sampling_pb2.StopCriteria(stop_strings=["XYZ", "nothing"])
    last, text, num_tokens = await run_with_stops(service, ids, [1] * len(ids), stop)
    assert text == "one "
    assert (last.finish.reason, last.finish.stop_string) == (STOP_STRING, "XYZ")
    (told,) = service.fake.stops
    assert told.num_tokens == num_tokens == last.finish.usage.num_output_tokens < len(ids)
    assert "XYZ" in tokenizer.decode(ids[:num_tokens])
    assert "XYZ" not in tokenizer.decode(ids[: num_tokens - 1])


async def test_include_stop_string_leaves_it_in_the_text(service, tokenizer):
    ids = tokenizer.encode_text("one XYZ two")
    stop = sampling_pb2.StopCriteria(stop_strings=["XYZ"], include_stop_string=True)
    _, text, _ = await run_with_stops(service, ids, [3, 3], stop)
    assert text == "one XYZ"


async def test_no_stop_string_ends_a_sequence_before_min_tokens(service, tokenizer):
    ids = tokenizer.encode_text("X one X two X")
    stop = sampling_pb2.StopCriteria(stop_strings=["X"], min_tokens=len(ids))
    last, text, num_tokens = await run_with_stops(service, ids, [2, 2], stop)
    assert text == "X one X two "
    assert (num_tokens, last.finish.reason) == (len(ids), STOP_STRING)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_streamed_text_is_the_reference_cut_of_the_whole_text(model, tokenizer, data):
    """Through the same sequence object that the RPCs use, without the network."""
    from loraplex_frontend.sequence import Sequence
    from loraplex_frontend.text.stop_strings import StopStrings
    from loraplex_frontend.validate import check_submit
    from tests.frontend.test_validate import LIMITS

    text = data.draw(st.text(alphabet="ab é🦊", max_size=20))
    stops = data.draw(st.lists(st.text(alphabet="ab é🦊", min_size=1, max_size=4), min_size=1, max_size=3))
    include = data.draw(st.booleans())
    ids = tokenizer.encode_text(text)
    request = check_submit(
        prompt(stop=sampling_pb2.StopCriteria(stop_strings=stops, include_stop_string=include)), LIMITS
    )
    sequence = Sequence(handle=0, index=0, request=request, table=tokenizer.decode_table, stops=StopStrings(stops))
    parts, start = [], 0
    while start < len(ids):
        size = data.draw(st.integers(1, 4))
        sequence.push(ids[start : start + size], (), 0.0)
        start += size
        parts.append(sequence.take(data.draw(st.none() | st.integers(0, 3))).text)
    sequence.end("the end")
    parts.append(sequence.take(None).text)
    wanted, stop, _ = reference(text, stops, include=include)
    assert ("".join(parts), sequence.stop_string) == (wanted, stop)


# --- errors ---


async def test_every_violation_is_in_the_status(service):
    request = generation_pb2.SubmitRequest(request_id="a b")
    request.sampling.n = 17
    error = await failure(service.inference.Submit(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_of(error) == ["request_id", "prompt", "sampling.n"]


async def test_a_text_that_is_too_long_says_both_numbers(service):
    error = await failure(service.inference.Submit(generation_pb2.SubmitRequest(text="é" * 2_000)))
    assert reason_of(error) == "PROMPT_TOO_LONG"
    assert dict(info_of(error).metadata) == {"promptTokens": "4000", "maxPromptTokens": "511"}
    request = generation_pb2.SubmitRequest(text="Hello", stop=sampling_pb2.StopCriteria(max_tokens=512))
    assert reason_of(await failure(service.inference.Submit(request))) == "CONTEXT_EXCEEDED"


async def test_the_context_is_the_models_where_the_workers_hold_more(model_path, tmp_path):
    fake = FakeScheduler(script=echo(tokens_per_turn=2000))
    fake.cluster.max_context_tokens = 100_000
    async with started(model_path, tmp_path, fake=fake) as service:
        await service.inference.Submit(prompt(*[10] * (CONTEXT - 1)))
        error = await failure(service.inference.Submit(prompt(*[10] * CONTEXT)))
    assert reason_of(error) == "PROMPT_TOO_LONG"


async def test_a_refusal_of_the_scheduler_is_the_status_of_the_call(service):
    call, up = await submitted(service, prompt())
    await service.fake.reject(up.handle, NotFound("adapter: no such", reason="ADAPTER_NOT_FOUND"))
    error = await failure(call)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")
    call, up = await submitted(service, prompt())
    await service.fake.reject(up.handle, ResourceExhausted("full", reason="QUEUE_FULL", retry_delay_s=2))
    error = await failure(call)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert has_retry_info(error)


async def test_a_refused_stream_ends_with_the_refusal_and_never_as_if_all_were_well(service):
    call = service.inference.SubmitStream(streamed(prompt()))
    up = await service.fake.next_submit()
    await service.fake.reject(up.handle, ResourceExhausted("full", reason="QUEUE_FULL", retry_delay_s=2))
    error = await failure(call.read())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


async def test_an_error_in_mid_stream_ends_the_call_after_the_tokens_that_came(service):
    call = service.inference.SubmitStream(streamed(prompt()))
    up = await service.fake.next_submit()
    await service.fake.begin(up)
    await service.fake.tokens((up.handle, 0, 0, [20]))
    for _ in range(2):
        await call.read()
    assert list((await call.read()).delta.token_ids) == [20]
    await service.fake.end(up.handle, error=DeadlineExceeded("too late", metadata={"tokensProduced": "1"}))
    error = await failure(call.read())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
    call, up = await submitted(service, prompt())
    await service.fake.begin(up)
    await service.fake.end(up.handle, error=DeadlineExceeded("too late"))
    assert (await failure(call)).code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_lost_scheduler_ends_calls_unavailable_with_a_retry_delay(service):
    call, up = await submitted(service, prompt())
    await service.fake.begin(up)
    service.fake.drop_link()
    error = await failure(call)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "SCHEDULER_LOST")
    assert has_retry_info(error)


async def test_a_request_waits_a_moment_for_a_scheduler_that_is_away(model_path, tmp_path):
    fake = FakeScheduler(script=echo())
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=20) as service:
        call = service.inference.Submit(prompt())
        fake.accepts_links = True
        assert (await call).outputs[0].finish.reason == MAX_TOKENS


async def test_a_scheduler_that_stays_away_is_unavailable(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=0.1) as service:
        error = await failure(service.inference.Submit(prompt()))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "SCHEDULER_AWAY")
        assert has_retry_info(error)


async def test_a_full_frontend_refuses_with_a_retry_delay(model_path, tmp_path):
    async with started(model_path, tmp_path, max_open_requests=1) as service:
        call, up = await submitted(service, prompt())
        error = await failure(service.inference.Submit(prompt()))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "FRONTEND_FULL")
        await service.fake.begin(up)
        await service.fake.end(up.handle)
        await call
        await submitted(service, prompt())


async def test_an_answer_past_the_message_limit_points_to_the_stream(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("loraplex_frontend.server.MAX_MESSAGE_BYTES", 400)
    async with started(model_path, tmp_path) as service:
        call, up = await submitted(service, prompt())
        await service.fake.begin(up)
        await service.fake.tokens((up.handle, 0, 0, [20] * 100))
        error = await failure(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
        await service.fake.until(lambda: service.fake.cancels)


async def test_bytes_that_are_no_message_are_malformed(service):
    raw = service.channel.unary_unary("/loraplex.v1.InferenceService/Submit")
    error = await failure(raw(b"\xff\xff\xff"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    bad_utf8 = b"\x22\x02\xc3\x28"  # field 4 (text), 2 bytes
    error = await failure(raw(bad_utf8))
    assert reason_of(error) == "MALFORMED_MESSAGE"


async def test_text_of_an_exception_never_reaches_a_caller(service, monkeypatch):
    def explode(*args, **kwargs):
        raise RuntimeError("the secret")

    monkeypatch.setattr("loraplex_frontend.submission.check_submit", explode)
    for call in (service.inference.Submit(prompt()), service.inference.SubmitStream(streamed(prompt())).read()):
        error = await failure(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in str(error)


async def test_attach_is_refused_by_name(service):
    error = await failure(service.inference.Attach(inference_pb2.AttachRequest(request_id="x")).read())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "FEATURE_DISABLED")
    assert info_of(error).metadata["feature"] == "Attach"


async def test_an_adapter_by_uri_is_refused_where_it_is_off(service):
    request = prompt(adapter=adapter_ref_pb2.AdapterRef(uri="file:///tmp"))
    error = await failure(service.inference.Submit(request))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_NOT_ALLOWED")
    assert service.fake.submits == []


# --- deadlines and cancellation ---


async def test_the_deadline_of_the_call_goes_up_as_time_left_and_its_passing_cancels(service):
    call, up = await submitted(service, prompt(), timeout=0.5)
    assert 0.1 < up.timeout.ToNanoseconds() / 1e9 <= 0.51
    error = await failure(call)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await service.fake.until(lambda: [cancel.handle for cancel in service.fake.cancels] == [up.handle])


async def test_the_shorter_of_call_deadline_and_timeout_counts(service):
    request = prompt()
    request.scheduling.timeout.seconds = 5
    call, up = await submitted(service, request, timeout=60)
    call.cancel()
    assert 4 < up.timeout.ToNanoseconds() / 1e9 <= 5


async def test_a_timeout_that_passes_while_the_scheduler_is_away_is_a_deadline(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=20) as service:
        request = prompt()
        request.scheduling.timeout.nanos = 50_000_000
        error = await failure(service.inference.Submit(request))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")


@pytest.mark.parametrize("shape", ["Submit", "SubmitStream"])
async def test_a_cancelled_call_cancels_upstream(service, shape):
    call = (
        service.inference.Submit(prompt()) if shape == "Submit" else service.inference.SubmitStream(streamed(prompt()))
    )
    up = await service.fake.next_submit()
    await service.fake.begin(up)
    call.cancel()
    await service.fake.until(lambda: [cancel.handle for cancel in service.fake.cancels] == [up.handle])


CLIENT = """
import grpc, sys
from loraplex.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
request = generation_pb2.SubmitRequest(tokens=generation_pb2.TokenIds(ids=[10]))
for event in stub.SubmitStream(inference_pb2.SubmitStreamRequest(request=request)):
    print(event.WhichOneof("event"), flush=True)
"""


async def test_a_killed_client_cancels_its_requests_upstream(service):
    address = service.frontend.ports["listen"]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, address], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        up = await service.fake.next_submit()
        await service.fake.begin(up)
        assert client.stdout is not None
        await asyncio.to_thread(client.stdout.readline)
        os.kill(client.pid, signal.SIGKILL)
        await service.fake.until(lambda: [cancel.handle for cancel in service.fake.cancels] == [up.handle])
    finally:
        client.kill()
        await asyncio.to_thread(client.wait, 5)
        if client.stdout is not None:
            client.stdout.close()


async def test_cancel_by_id_says_what_became_of_each(service):
    call, up = await submitted(service, prompt(request_id="mine"))
    await service.fake.begin(up)
    answer = await service.inference.Cancel(inference_pb2.CancelRequest(request_ids=["mine", "other"]))
    assert [(result.request_id, result.outcome) for result in answer.results] == [
        ("mine", inference_pb2.CANCEL_OUTCOME_CANCELLED),
        ("other", inference_pb2.CANCEL_OUTCOME_UNKNOWN_REQUEST),
    ]
    assert (await call).outputs[0].finish.reason == generation_pb2.FINISH_REASON_CANCELLED


async def test_a_cancel_that_finds_nothing_is_not_found(service):
    error = await failure(service.inference.Cancel(inference_pb2.CancelRequest(request_ids=["x"])))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")


@pytest.mark.parametrize("ids", [[], ["x"] * 1025, [""], ["a b"]])
async def test_malformed_cancels_are_refused(service, ids):
    error = await failure(service.inference.Cancel(inference_pb2.CancelRequest(request_ids=ids)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_cancel_reaches_a_request_that_still_waits_for_the_scheduler(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=20) as service:
        call = service.inference.Submit(prompt(request_id="early"))
        await service.wait_for_open(1)
        answer = await service.inference.Cancel(inference_pb2.CancelRequest(request_ids=["early"]))
        assert answer.results[0].outcome == inference_pb2.CANCEL_OUTCOME_CANCELLED
        error = await failure(call)
    assert error.code() == grpc.StatusCode.CANCELLED


async def test_an_id_that_is_being_submitted_cannot_be_used_again(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake, scheduler_grace_s=20) as service:
        call = service.inference.Submit(prompt(request_id="twice"))
        await service.wait_for_open(1)
        error = await failure(service.inference.Submit(prompt(request_id="twice")))
        call.cancel()
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
