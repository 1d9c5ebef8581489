"""AsyncClient against a real gRPC server with a scripted mind."""

import asyncio
import gc

import pytest

from loraplex_client import (
    AdapterRef,
    AdapterState,
    AsyncClient,
    Chat,
    FinishReason,
    RequestOptions,
    SamplingParams,
    WeightedAdapter,
)
from loraplex_client import session as session_module
from loraplex_contract import errors
from tests.client.conftest import adapter_folder
from tests.fakes.fake_frontend import FakeFrontend, Script


@pytest.fixture
async def client(frontend):
    async with AsyncClient(frontend.address, admin_target=frontend.admin_address) as client:
        yield client


async def test_a_stream_yields_every_token_once_and_ends_after_the_finish(client):
    stream = client.stream("tokens=4")
    deltas = [delta async for delta in stream]
    assert [delta.first_token for delta in deltas if delta.num_tokens] == [0, 1, 2, 3]
    assert [token for delta in deltas for token in delta.token_ids] == [1000, 1001, 1002, 1003]
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason is FinishReason.MAX_TOKENS
    assert stream.prompt is not None
    assert stream.prompt.seed == 77
    assert await stream.take() is None


async def test_generate_gathers_all_n_sequences(client):
    output = await client.generate("tokens=2", SamplingParams(n=3))
    assert [sequence.index for sequence in output.sequences] == [0, 1, 2]
    assert {sequence.text for sequence in output.sequences} == {"base:0 base:1 "}
    assert output.sequences[2].token_ids == (1000, 1001)


async def test_many_requests_share_one_session(client, frontend):
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(client.generate(f"tokens={1 + i % 5}")) for i in range(200)]
    assert [len(task.result().sequences[0].token_ids) for task in work] == [1 + i % 5 for i in range(200)]
    assert frontend.num_sessions == 1


async def test_no_more_requests_are_open_than_the_server_allows():
    async with FakeFrontend(Script(max_in_flight=2)) as server, AsyncClient(server.address) as client:
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(client.generate("tokens=2 delay=0.002")) for _ in range(10)]
        assert all(task.result().text for task in work)


async def test_closing_a_stream_cancels_its_request_and_no_other(client, frontend):
    other = client.stream("endless", SamplingParams(max_tokens=10_000))
    await other.take()
    async with client.stream("endless", SamplingParams(max_tokens=10_000)) as stream:
        await stream.take()
    await frontend.until(lambda: stream.request_id in frontend.cancelled)
    assert (await other.take()) is not None
    assert frontend.cancelled == [stream.request_id]
    await other.aclose()


async def test_breaking_out_of_the_loop_cancels_the_request(client, frontend):
    async for _ in client.stream(
        "endless", SamplingParams(max_tokens=10_000), options=RequestOptions(request_id="left")
    ):
        break
    gc.collect()
    await frontend.until(lambda: frontend.cancelled == ["left"])


async def test_cancelling_the_task_that_generates_cancels_the_request(client, frontend):
    task = asyncio.ensure_future(client.generate("endless", SamplingParams(max_tokens=10_000)))
    await frontend.until(lambda: frontend.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await frontend.until(lambda: len(frontend.cancelled) == 1)


async def test_a_request_cancelled_by_id_ends_with_what_it_has(client, frontend):
    stream = client.stream("endless", SamplingParams(max_tokens=10_000))
    await stream.take()
    assert await client.cancel(stream.request_id)
    output = await stream.collect()
    assert output.sequences[0].finish.reason is FinishReason.CANCELLED
    assert await client.cancel(stream.request_id) is False


@pytest.mark.parametrize(("word", "reason"), [("gap", "TOKEN_GAP"), ("repeat", "TOKEN_REPEATED")])
async def test_a_break_in_the_order_of_tokens_is_an_error_and_harms_no_other_request(client, frontend, word, reason):
    healthy = client.stream("tokens=40 delay=0.002", SamplingParams(max_tokens=None))
    await healthy.start()
    with pytest.raises(errors.Internal) as caught:
        await client.generate(f"endless {word}", SamplingParams(max_tokens=10_000))
    assert caught.value.reason == reason
    await frontend.until(lambda: len(frontend.cancelled) == 1)
    assert len((await healthy.collect()).sequences[0].token_ids) == 40


async def test_an_error_of_one_request_is_raised_with_its_class_and_reason(client):
    stream = client.stream("tokens=5 fail")
    with pytest.raises(errors.Unavailable) as caught:
        await stream.collect()
    assert caught.value.reason == "WORKER_LOST"
    assert caught.value.retry_delay_s == 1.0
    assert (await client.generate("tokens=1")).text == "base:0 "


async def test_an_unknown_adapter_is_not_found(client):
    with pytest.raises(errors.NotFound) as caught:
        await client.generate("tokens=1", adapter="nobody")
    assert caught.value.reason == "ADAPTER_NOT_FOUND"


async def test_a_bad_field_is_named_with_its_path(client):
    with pytest.raises(errors.InvalidArgument) as caught:
        await client.generate("tokens=1", SamplingParams(temperature=-1))
    assert [violation.field for violation in caught.value.violations] == ["sampling.temperature"]


async def test_a_missing_credential_is_unauthenticated_on_calls_and_sessions():
    async with FakeFrontend(Script(token="secret")) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(errors.Unauthenticated):
                await client.register_adapter("a", "/nowhere")
            with pytest.raises(errors.Unauthenticated):
                await client.generate("tokens=1")
        async with AsyncClient(server.address, token="secret") as client:
            assert (await client.generate("tokens=1")).text == "base:0 "


async def test_nobody_listening_is_unavailable_and_says_where():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
            await client.generate("tokens=1")
        with pytest.raises(errors.Unavailable) as caught:
            await client.server_info()
        assert caught.value.reason == "UNREACHABLE"


async def test_a_server_that_stops_fails_what_runs_and_the_next_request_opens_a_new_session(frontend):
    async with AsyncClient(frontend.address) as client:
        stream = client.stream("endless", SamplingParams(max_tokens=10_000))
        await stream.take()
        await frontend.stop()
        with pytest.raises(errors.Unavailable):
            await stream.collect()
        with pytest.raises(errors.Unavailable):
            await client.generate("tokens=1")


async def test_three_missed_heartbeats_mean_that_the_server_is_lost():
    async with FakeFrontend(Script(heartbeat_s=0.05)) as server, AsyncClient(server.address) as client:
        await client.generate("tokens=1")
        server.script.sends_heartbeats = False
        with pytest.raises(errors.Unavailable) as caught:
            await client.generate("tokens=1 delay=5")
        assert caught.value.reason == "HEARTBEAT_LOST"
        server.script.sends_heartbeats = True
        assert (await client.generate("tokens=1")).text == "base:0 "
        assert server.num_sessions == 2


async def test_heartbeats_keep_a_silent_session_alive():
    async with FakeFrontend(Script(heartbeat_s=0.02)) as server, AsyncClient(server.address) as client:
        assert (await client.generate("tokens=1 delay=0.4")).text == "base:0 "


async def test_a_server_that_never_opens_the_session_is_given_up(monkeypatch):
    monkeypatch.setattr(session_module, "OPEN_TIMEOUT_S", 0.1)
    async with FakeFrontend(Script(opens_sessions=False)) as server, AsyncClient(server.address) as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.generate("tokens=1")
        assert caught.value.reason == "SESSION_NOT_OPENED"


async def test_credit_is_given_back_as_tokens_arrive(client, frontend, monkeypatch):
    monkeypatch.setattr(session_module, "TOKEN_WINDOW", 100)
    await client.generate("tokens=160", SamplingParams(max_tokens=None))
    await frontend.until(lambda: sum(frontend.credits) == 150)
    assert frontend.credits == [50, 50, 50]


async def test_go_away_moves_new_requests_to_another_session_and_lets_old_ones_end():
    async with FakeFrontend(Script(go_away_after=1)) as server, AsyncClient(server.address) as client:
        first = client.stream("tokens=30 delay=0.005", SamplingParams(max_tokens=None))
        await first.take()
        server.script.go_away_after = 0
        assert (await client.generate("tokens=2")).text == "base:0 base:1 "
        assert len((await first.collect()).sequences[0].token_ids) == 29
        assert server.num_sessions == 2


async def test_a_request_can_still_be_cancelled_after_go_away():
    async with FakeFrontend(Script(go_away_after=1)) as server, AsyncClient(server.address) as client:
        old = client.stream("endless", SamplingParams(max_tokens=10_000))
        await old.take()
        server.script.go_away_after = 0
        await client.generate("tokens=1")
        assert server.num_sessions == 2
        await old.aclose()
        await server.until(lambda: server.cancelled == [old.request_id])


async def test_the_errors_of_the_with_body_come_out_as_they_are(frontend):
    async def fail_inside() -> None:
        async with AsyncClient(frontend.address) as client:
            await client.generate("tokens=1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()


async def test_leaving_with_requests_open_cancels_them_at_once(frontend):
    async with AsyncClient(frontend.address) as client:
        stream = client.stream("endless", SamplingParams(max_tokens=10_000))
        await stream.take()
    await frontend.until(lambda: not frontend.running)
    with pytest.raises(errors.Cancelled):
        await stream.collect()


async def test_prompts_travel_as_text_ids_or_chat(client, frontend):
    await client.generate("tokens=1")
    await client.generate(list(b"tokens=1"))
    await client.generate([{"role": "user", "content": "tokens=1"}])
    await client.generate(Chat.of([{"role": "user", "content": "tokens=1"}], add_generation_prompt=False))
    forms = [request.WhichOneof("prompt") for request in frontend.submitted]
    assert forms == ["text", "tokens", "chat", "chat"]
    assert [request.chat.add_generation_prompt for request in frontend.submitted[2:]] == [True, False]


async def test_adapters_are_named_versioned_scaled_and_composed(client, frontend, tmp_path):
    await client.register_adapter("sql", adapter_folder(tmp_path, "sql"))
    await client.register_adapter("json", adapter_folder(tmp_path, "json"))
    assert (await client.generate("tokens=1", adapter="sql@1")).text == "sql:0 "
    await client.generate("tokens=1", adapter=AdapterRef(name="sql", scale=0.5))
    parts = [WeightedAdapter(name="sql", weight=0.25), WeightedAdapter(name="json")]
    output = await client.generate("tokens=1", adapter=parts)
    assert [adapter.name for adapter in output.prompt.adapters] == ["sql", "json"]
    refs = [request.adapter for request in frontend.submitted]
    assert (refs[0].name, refs[0].version) == ("sql", "1")
    assert refs[1].scale == 0.5
    assert [part.weight for part in refs[2].composition] == [0.25, 0.0]
    assert not refs[2].composition[1].HasField("weight")


@pytest.mark.parametrize("prompt", [[1, -2], [2**32], ["a"]])
async def test_token_ids_that_are_none_are_refused_before_they_are_sent(client, prompt):
    with pytest.raises(errors.InvalidArgument, match="prompt"):
        await client.generate(prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("top_k", -2),
        ("n", 1.5),
        ("temperature", float("nan")),
        ("seed", 2**64),
        ("stop_token_ids", [-1]),
        ("logit_bias", {5: float("inf")}),
        ("logprobs", -1),
        ("stop", [b"x"]),
    ],
)
async def test_values_that_the_wire_cannot_hold_are_refused_by_field(client, field, value):
    with pytest.raises(errors.InvalidArgument, match=field):
        await client.generate("tokens=1", SamplingParams(**{field: value}))


async def test_every_sampling_field_reaches_the_wire(client, frontend):
    sampling = SamplingParams(
        n=2,
        temperature=0.0,
        top_p=0.5,
        top_k=-1,
        min_p=0.125,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        seed=0,
        stop="END",
        stop_token_ids=[7],
        max_tokens=9,
        min_tokens=1,
        logprobs=0,
        prompt_logprobs=1,
        ignore_eos=True,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        detokenize=False,
        logit_bias={3: 1.5},
        allowed_token_ids=[3, 4],
        banned_token_ids=[5],
        time_limit_s=2.5,
    )
    options = RequestOptions(
        request_id="r-1",
        priority=-3,
        timeout_s=4.0,
        queue_timeout_s=1.5,
        first_token_timeout_s=0.5,
        labels={"a": "b"},
    )
    await client.generate("tokens=1", sampling, options=options)
    [sent] = frontend.submitted
    assert sent.sampling.HasField("temperature")
    assert (sent.sampling.n, sent.sampling.top_k, sent.sampling.seed) == (2, 0, 0)
    assert sent.sampling.HasField("seed")
    assert (sent.sampling.top_p, sent.sampling.min_p, sent.sampling.repetition_penalty) == (0.5, 0.125, 1.25)
    assert (sent.sampling.presence_penalty, sent.sampling.frequency_penalty) == (0.5, -0.5)
    assert dict(sent.sampling.logit_bias) == {3: 1.5}
    assert (list(sent.sampling.allowed_token_ids), list(sent.sampling.banned_token_ids)) == ([3, 4], [5])
    assert (list(sent.stop.stop_strings), list(sent.stop.stop_token_ids)) == (["END"], [7])
    assert (sent.stop.max_tokens, sent.stop.min_tokens, sent.stop.ignore_eos) == (9, 1, True)
    assert sent.stop.include_stop_string
    assert sent.stop.time_limit.ToMilliseconds() == 2500
    assert (sent.output.text, sent.output.skip_special_tokens) == (False, False)
    assert sent.output.HasField("top_logprobs")
    assert (sent.output.top_logprobs, sent.output.prompt_logprobs) == (0, 1)
    assert (sent.request_id, sent.scheduling.priority, dict(sent.labels)) == ("r-1", -3, {"a": "b"})
    assert sent.scheduling.timeout.ToMilliseconds() == 4000
    assert sent.scheduling.queue_timeout.ToMilliseconds() == 1500
    assert sent.scheduling.first_token_timeout.ToMilliseconds() == 500


async def test_an_adapter_lives_through_register_get_list_and_unregister(client, frontend, tmp_path):
    adapter = await client.register_adapter("one", adapter_folder(tmp_path, "one"), labels={"team": "x"})
    assert adapter.state is AdapterState.READY
    assert adapter.version.report.modules[0].scale == 2.0
    assert frontend.registered[0].uri.startswith("file:///")
    assert (await client.get_adapter("one")).version.digest == adapter.version.digest
    with pytest.raises(errors.AlreadyExists):
        await client.register_adapter("one", adapter_folder(tmp_path, "other"))
    moved = await client.register_adapter("one", tmp_path / "other", allow_update=True)
    assert moved.version.number == 2
    assert (await client.unregister_adapter("one")).state is AdapterState.DELETED
    with pytest.raises(errors.NotFound):
        await client.get_adapter("one")


async def test_a_list_of_adapters_reads_every_page(client, tmp_path):
    folder = adapter_folder(tmp_path, "folder")
    for number in range(7):
        await client.register_adapter(f"a{number}", folder)
    await client.register_adapter("b", folder)
    names = [adapter.name async for adapter in client.list_adapters("a", page_size=3)]
    assert names == [f"a{number}" for number in range(7)]


async def test_texts_become_ids_and_back(client):
    assert await client.tokenize(["ab", "c"]) == [[97, 98], [99]]
    assert await client.tokenize("ab") == [[97, 98]]
    assert await client.detokenize([97, 98]) == "ab"
    text, token_ids = await client.render_chat(Chat.of([{"role": "user", "content": "hi"}]))
    assert text == "<user> hi"
    assert bytes(token_ids).decode() == text


async def test_the_server_says_what_it_is(client):
    info = await client.server_info()
    assert (info.server_version, info.num_ready_workers, info.limits.max_context_tokens) == ("0.1.0", 1, 2048)
    assert (await client.model()).name == "fake-model"
    [worker] = (await client.cluster()).workers
    assert (worker.num_steps, worker.num_mixed_steps, worker.max_adapters_in_step) == (40, 30, 3)


async def test_the_cluster_needs_the_admin_address(frontend):
    async with AsyncClient(frontend.address) as client:
        with pytest.raises(errors.FailedPrecondition, match="admin_target"):
            await client.cluster()


async def test_a_chat_message_with_an_unknown_key_is_refused_by_name(client):
    with pytest.raises(errors.InvalidArgument, match="tool_calls"):
        Chat.of([{"role": "user", "content": "x", "tool_calls": []}])
