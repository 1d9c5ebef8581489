"""The link of a real worker (engine, step thread, cache) to a gateway that does what each test says."""

import asyncio
import contextlib
import itertools
import os
import time
import types
from typing import Any

import pytest

from loraplex.worker.v1 import worker_link_pb2 as pb
from loraplex_adapters.store import AdapterStore
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from loraplex_worker import worker
from loraplex_worker.base_model import model_fingerprint
from loraplex_worker.engine.command import Admit, Sampling, Stop
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine_port import EngineFailed, EnginePort
from loraplex_worker.lease import Lease
from loraplex_worker.link_session import MAX_WAITING_FRAMES, LinkLost, LinkSession, Term
from loraplex_worker.model.decoder import Decoder
from tests.fakes import fake_worker_gateway as fake
from tests.worker import tiny_worker as tiny

DEVICE, EVICTED, FAILED = (
    pb.WORKER_ADAPTER_STATE_DEVICE,
    pb.WORKER_ADAPTER_STATE_EVICTED,
    pb.WORKER_ADAPTER_STATE_FAILED,
)
MAX_TOKENS = pb.SEQUENCE_FINISH_REASON_MAX_TOKENS
PROMPT = [3, 14, 15, 92, 65]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def decoder(model):
    return tiny.tiny_decoder(model)


@pytest.fixture
def store(tmp_path):
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def start(model, decoder, tmp_path):
    """Opens a gateway with a worker on it: ``async with start() as (server, leave)``."""

    @contextlib.asynccontextmanager
    async def open_both(*, settings=None, **gateway):
        async with fake.serve(fake.FakeWorkerGateway(**gateway)) as server:
            worker_settings = tiny.tiny_settings(model, tmp_path / "store", server.address, **(settings or {}))
            async with tiny.serving(worker_settings, decoder) as leave:
                yield server, leave

    return open_both


def pages(stream):
    last = stream.of_kind("report")[-1]
    return last.num_pages_free, last.num_pages_kv, last.num_pages_adapter


async def load(stream, digest, *, num_pages=tiny.ADAPTER_PAGES):
    stream.send(load=[fake.load(digest, num_pages=num_pages)])
    return await stream.until_event(digest, DEVICE)


async def beat(stream):
    """A heartbeat that was made after this call: not the next one, which may be on its way already."""
    seen = len(stream.of_kind("heartbeat")) + 1
    return await stream.until(lambda: stream.of_kind("heartbeat")[seen:], "another heartbeat")


# --- registration ---


async def test_the_worker_registers_its_sizes_and_its_model(start, model, decoder):
    async with start() as (server, _):
        stream = await server.gateway.worker()
    register = stream.register
    assert register.model_fingerprint == model_fingerprint(model)
    assert (register.protocol_version, register.worker_id, register.device) == (1, "tiny", "cpu")
    assert (register.num_pages, register.page_size, register.page_bytes) == (
        tiny.NUM_PAGES,
        tiny.PAGE_SIZE,
        tiny.PAGE_BYTES,
    )
    assert (register.max_sequences, register.max_step_tokens, register.vocab_size) == (16, 32, tiny.VOCAB)
    assert register.adapter_parameter_bytes == decoder.lora_dtype.itemsize
    assert len(register.incarnation) == 32


async def test_a_context_that_the_pool_cannot_hold_is_not_promised(start, decoder):
    assert decoder.config.max_position_embeddings == 512
    async with start() as (server, _):
        assert (await server.gateway.worker()).register.max_context_tokens == tiny.NUM_PAGES * tiny.PAGE_SIZE == 256
    async with start(settings={"max_context_tokens": 200}) as (server, _):
        assert (await server.gateway.worker()).register.max_context_tokens == 200


@pytest.mark.parametrize(
    ("changes", "field"), [({"max_context_tokens": 513}, "max_context_tokens"), ({"page_size": 1024}, "kv_pool_bytes")]
)
def test_sizes_that_cannot_work_are_refused_by_name(model, decoder, tmp_path, changes, field):
    settings = tiny.tiny_settings(model, tmp_path, "127.0.0.1:1", **changes)
    with pytest.raises(FailedPrecondition, match=field):
        worker.engine_config(settings, decoder)


# --- sequences ---


async def test_an_admitted_sequence_reports_every_token_once_and_its_end(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=12), fake.admit(2, PROMPT[:2], max_tokens=5)])
        first, second = await stream.until_finished(1), await stream.until_finished(2)
        assert (len(first.tokens), first.finish.reason) == (12, MAX_TOKENS)
        assert (len(second.tokens), second.finish.reason) == (5, MAX_TOKENS)
        reports = stream.of_kind("report")
        assert [report.step for report in reports] == list(range(1, len(reports) + 1))
        assert all(report.epoch == stream.epoch and report.has_base_rows for report in reports)
        assert pages(stream) == (tiny.NUM_PAGES, 0, 0)


async def test_the_same_request_gives_the_same_tokens_after_a_preemption(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=10)])
        whole = (await stream.until_finished(1)).tokens
        stream.output(2).tokens = whole[:4]
        emitted = token_bytes.pack(whole[:4])
        stream.send(admit=[fake.admit(2, PROMPT, max_tokens=10, emitted_ids_le32=emitted)])
        assert (await stream.until_finished(2)).tokens == whole


async def test_an_exhausted_grant_pauses_the_sequence_and_the_next_one_resumes_it(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=9, grant_tokens=3)])
        await stream.until(lambda: len(stream.output(1).tokens) == 3, "the grant is used up")
        idle = (await beat(stream))[-1]
        assert (idle.has_work, idle.last_step) == (False, len(stream.of_kind("report")))
        assert len(stream.output(1).tokens) == 3
        assert pages(stream)[1] == 2, "5 prompt tokens and a grant of 3 take two pages of 4"
        stream.send(grant=[pb.Grant(sequence_id=1, grant_tokens=9)])
        assert len((await stream.until_finished(1)).tokens) == 9


async def test_a_retired_sequence_frees_its_pages_within_one_step(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(i, PROMPT, max_tokens=50, grant_tokens=3) for i in (1, 2)])
        await stream.until(lambda: len(stream.output(1).tokens) == len(stream.output(2).tokens) == 3, "both pause")
        assert pages(stream)[1] == 4
        before = len(stream.of_kind("report"))
        stream.send(retire=[1, 77], grant=[pb.Grant(sequence_id=2, grant_tokens=50)])
        await stream.until_finished(2)
        after = stream.of_kind("report")[before:]
        assert after[0].num_pages_kv == 14, "5 + 50 tokens of the other in pages of 4, and nothing of the retired"
        assert all(list(report.tokens.keys) == [2] for report in after)
        assert stream.output(1).finish is None
        assert stream.of_kind("refused") == []


async def test_a_refused_admission_is_reported_and_its_neighbours_run(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        torn = fake.admit(2, PROMPT)
        torn.prompt_ids_le32 = b"\1\2\3"
        unknown = tiny.absent_digest("never loaded")
        greedy = fake.admit(4, PROMPT, max_tokens=200, grant_tokens=10_000)
        stream.send(
            admit=[fake.admit(1, PROMPT), torn, fake.admit(3, PROMPT, adapters=fake.using(unknown)), greedy],
        )
        await stream.until_finished(1)
        refused = await stream.until(lambda: stream.of_kind("refused")[2:] and stream.of_kind("refused"), "3 refusals")
        assert {(entry.sequence_id, entry.digest, entry.reason) for entry in refused} == {
            (2, "", "FIELD_INVALID"),
            (3, unknown, "ADAPTER_NOT_ATTACHED"),
            (4, "", "OUT_OF_PAGES"),
        }
        assert all(entry.epoch == stream.epoch for entry in refused)


async def test_the_budget_bounds_the_rows_of_a_step(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(max_step_tokens=4, admit=[fake.admit(1, list(range(3, 23)), max_tokens=1)])
        stream.send(max_step_tokens=4)
        stream.send(admit=[fake.admit(2, list(range(3, 23)), max_tokens=1)])
        await stream.until_finished(2)
        later = [report.num_rows for report in stream.of_kind("report")[-5:]]
        assert later == [4, 4, 4, 4, 4]


# --- adapters ---


async def test_a_loaded_adapter_is_announced_used_and_charged(start, store):
    digest = tiny.put_adapter(store, seed=1)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        event = await load(stream, digest)
        assert (event.epoch, event.num_bytes) == (stream.epoch, 2 * tiny.RANK * tiny.HIDDEN * 4)
        assert event.load_time.ToNanoseconds() > 0
        stream.send(admit=[fake.admit(1, PROMPT, adapters=fake.using(digest)), fake.admit(2, PROMPT)])
        with_adapter, base = await stream.until_finished(1), await stream.until_finished(2)
        assert with_adapter.tokens != base.tokens
        assert list(stream.of_kind("report")[0].adapter_digests) == [digest]
        assert pages(stream) == (tiny.NUM_PAGES - tiny.ADAPTER_PAGES, 0, tiny.ADAPTER_PAGES)


async def test_a_step_with_adapter_rows_only_says_so(start, store):
    digest = tiny.put_adapter(store, seed=1)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(admit=[fake.admit(1, PROMPT, adapters=fake.using(digest))])
        await stream.until_finished(1)
        assert not any(report.has_base_rows for report in stream.of_kind("report"))


async def test_an_eviction_is_announced_after_the_pages_are_free(start, store):
    digest = tiny.put_adapter(store, seed=2)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(evict=[digest])
        await stream.until_event(digest, EVICTED)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=1)])
        await stream.until_finished(1)
        assert pages(stream) == (tiny.NUM_PAGES, 0, 0)
        assert [event.state for event in stream.events(digest)] == [DEVICE, EVICTED]


async def test_an_adapter_in_use_is_not_evicted_and_its_user_goes_on(start, store):
    digest = tiny.put_adapter(store, seed=3)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=4, grant_tokens=2, adapters=fake.using(digest))])
        stream.send(evict=[digest])
        refused = await stream.until(lambda: stream.of_kind("refused"), "the refusal")
        assert [(entry.digest, entry.reason) for entry in refused] == [(digest, "ADAPTER_IN_USE")]
        stream.send(grant=[pb.Grant(sequence_id=1, grant_tokens=4)])
        await stream.until_finished(1)
        stream.send(evict=[digest])
        await stream.until_event(digest, EVICTED)


async def test_an_evicted_adapter_comes_back_from_the_host_cache(start, store):
    digest = tiny.put_adapter(store, seed=4)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(evict=[digest])
        await stream.until_event(digest, EVICTED)
        assert (await beat(stream))[-1].host_cache_bytes == 2 * tiny.RANK * tiny.HIDDEN * 4
        store.delete(digest)
        stream.send(load=[fake.load(digest, num_pages=tiny.ADAPTER_PAGES)])
        await stream.until(lambda: len(stream.events(digest)) == 3, "the second load is answered")
        assert stream.events(digest)[-1].state == DEVICE


async def test_evicting_and_loading_again_in_one_frame_answers_both_in_order(start, store):
    digest = tiny.put_adapter(store, seed=5)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        for _ in range(3):
            stream.send(evict=[digest], load=[fake.load(digest, num_pages=tiny.ADAPTER_PAGES)])
        states = await stream.until(
            lambda: len(stream.events(digest)) >= 5 and [event.state for event in stream.events(digest)], "answers"
        )
        assert states[0] == DEVICE
        assert EVICTED in states
        stream.send(admit=[fake.admit(1, PROMPT, adapters=fake.using(digest))])
        await stream.until(
            lambda: stream.output(1).finish or stream.of_kind("refused"), "the adapter's last state is known"
        )


async def test_a_second_order_for_a_version_on_the_device_is_answered_too(start, store):
    digest = tiny.put_adapter(store, seed=6)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(load=[fake.load(digest, num_pages=tiny.ADAPTER_PAGES)])
        await stream.until(lambda: len(stream.events(digest)) == 2, "a second answer")
        assert {event.state for event in stream.events(digest)} == {DEVICE}
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=1)])
        await stream.until_finished(1)
        assert pages(stream)[2] == tiny.ADAPTER_PAGES, "charged once"


def corrupt(store_root, digest):
    path = store_root / digest[:2] / digest / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


async def test_a_bad_version_fails_with_its_reason_and_harms_nobody(start, store, tmp_path):
    good, damaged = tiny.put_adapter(store, seed=7), tiny.put_adapter(store, seed=8)
    absent = tiny.absent_digest("absent")
    corrupt(tmp_path / "store", damaged)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, good)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=60, adapters=fake.using(good))])
        stream.send(
            load=[fake.load(absent, num_pages=1), fake.load(damaged, num_pages=2), fake.load("../x", num_pages=1)]
        )
        expected = {absent: NotFound, damaged: DataLoss}
        for digest, kind in expected.items():
            error = status.error_from_pb((await stream.until_event(digest, FAILED)).error)
            assert type(error) is kind
            assert str(tmp_path) not in error.message
        await stream.until_event("../x", FAILED)
        assert len((await stream.until_finished(1)).tokens) == 60
        assert pages(stream)[2] == tiny.ADAPTER_PAGES


async def test_a_version_that_finds_no_pages_fails_and_charges_nothing(start, store):
    digest = tiny.put_adapter(store, seed=9)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(load=[fake.load(digest, num_pages=tiny.NUM_PAGES + 1)])
        error = status.error_from_pb((await stream.until_event(digest, FAILED)).error)
        assert (type(error), error.reason) == (ResourceExhausted, "OUT_OF_PAGES")
        await load(stream, digest)


async def test_a_version_charged_with_too_few_pages_is_refused_by_name(start, store):
    digest = tiny.put_adapter(store, seed=10)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(load=[fake.load(digest, num_pages=tiny.ADAPTER_PAGES - 1)])
        error = status.error_from_pb((await stream.until_event(digest, FAILED)).error)
        assert (type(error), error.reason) == (FailedPrecondition, "ADAPTER_PAGES_WRONG")
        assert "num_pages" in error.message


# --- epochs, leases, loss ---


async def test_deltas_of_another_epoch_are_dropped(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(epoch=stream.epoch - 1, admit=[fake.admit(1, PROMPT)])
        stream.send(epoch=stream.epoch + 1, admit=[fake.admit(2, PROMPT)])
        stream.send(admit=[fake.admit(3, PROMPT)])
        await stream.until_finished(3)
        await beat(stream)
        assert set(stream.outputs) == {3}
        assert stream.of_kind("refused") == []


async def test_heartbeats_carry_the_progress_of_the_step_loop(start):
    async with start() as (server, _):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=6)])
        await stream.until_finished(1)
        beats = await stream.until(
            lambda: stream.of_kind("heartbeat")[-1].last_step == 6 and stream.of_kind("heartbeat"), "6 steps are told"
        )
        assert [beat.sequence for beat in beats] == list(range(1, len(beats) + 1))
        assert {beat.epoch for beat in beats} == {stream.epoch}
        assert all(earlier.last_step <= later.last_step for earlier, later in itertools.pairwise(beats))
        assert beats[-1].loop_age.ToNanoseconds() == 0, "an idle loop is not late"


async def test_a_worker_without_acks_drops_everything_when_its_lease_ends(start, store):
    digest = tiny.put_adapter(store, seed=11)
    async with start(lease_ttl_s=0.5) as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=200, grant_tokens=2, adapters=fake.using(digest))])
        await stream.until(lambda: len(stream.output(1).tokens) == 2, "it runs")
        stream.acks = False
        again = await server.gateway.worker(1)
        await stream.until(lambda: stream.ended, "the worker gave the old stream up")
        assert again.register.incarnation != stream.register.incarnation
        again.send(admit=[fake.admit(1, PROMPT, max_tokens=2)])
        await again.until_finished(1)
        assert pages(again) == (tiny.NUM_PAGES, 0, 0)


async def test_answered_heartbeats_keep_the_lease(start):
    async with start(lease_ttl_s=0.5, heartbeat_interval_s=0.05) as (server, _):
        stream = await server.gateway.worker()
        await stream.until(lambda: len(stream.of_kind("heartbeat")) >= 25, "more than twice the lease has passed")
        assert not stream.ended
        assert len(server.gateway.streams) == 1


async def test_adapters_of_a_lost_term_make_room_in_the_host_cache(start, store):
    first, second = tiny.put_adapter(store, seed=13), tiny.put_adapter(store, seed=14)
    room_for_one = 2 * tiny.RANK * tiny.HIDDEN * 4
    async with start(settings={"host_cache_bytes": room_for_one}) as (server, _):
        stream = await server.gateway.worker()
        await load(stream, first)
        stream.send(load=[fake.load(second, num_pages=tiny.ADAPTER_PAGES)])
        error = status.error_from_pb((await stream.until_event(second, FAILED)).error)
        assert (type(error), error.reason) == (ResourceExhausted, "HOST_CACHE_FULL")
        stream.hang_up()
        await load(await server.gateway.worker(1), second)


async def test_a_killed_gateway_is_dialled_again_with_a_full_ledger(start, store):
    digest = tiny.put_adapter(store, seed=12)
    async with start() as (server, _):
        stream = await server.gateway.worker()
        await load(stream, digest)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=240, adapters=fake.using(digest))])
        await stream.until(lambda: stream.output(1).tokens, "it runs")
        await server.kill()
        await server.start()
        again = await server.gateway.worker(1)
        assert again.register.incarnation != stream.register.incarnation
        assert again.register.worker_id == stream.register.worker_id
        assert again.epoch > stream.epoch
        again.send(admit=[fake.admit(2, PROMPT, max_tokens=1), fake.admit(3, PROMPT, adapters=fake.using(digest))])
        await again.until_finished(2)
        assert pages(again) == (tiny.NUM_PAGES, 0, 0)
        assert set(again.outputs) == {2}, "nothing of the former term is reported"
        assert [entry.reason for entry in again.of_kind("refused")] == ["ADAPTER_NOT_ATTACHED"]
        store.delete(digest)
        await load(again, digest)


async def test_a_worker_waits_for_a_scheduler_that_is_not_there_yet(start, model, decoder, tmp_path):
    async with fake.serve(fake.FakeWorkerGateway()) as server:
        await server.kill()
        settings = tiny.tiny_settings(model, tmp_path / "store", server.address)
        async with tiny.serving(settings, decoder):
            await server.start()
            await server.gateway.worker()


async def test_a_scheduler_that_never_answers_register_is_dialled_again(start):
    async with start(silent=1, settings={"register_timeout_s": 0.2}) as (server, _):
        assert (await server.gateway.worker(1)).register.worker_id == "tiny"


async def test_a_scheduler_of_an_earlier_epoch_is_refused(start):
    async with start(epochs=[7, 5, 8]) as (server, _):
        first = await server.gateway.worker(0)
        await beat(first)
        first.hang_up()
        assert (await server.gateway.worker(1)).epoch == 5
        third = await server.gateway.worker(2)
        third.send(admit=[fake.admit(1, PROMPT)])
        await third.until_finished(1)
        stale = server.gateway.streams[1]
        await stale.until(lambda: stale.ended, "the stale stream is over")
        assert stale.of_kind("heartbeat") == []


class DeafCall:
    """A stream whose peer neither reads nor writes."""

    async def read(self):
        await asyncio.Event().wait()

    async def write(self, frame):
        await asyncio.Event().wait()


async def test_a_scheduler_that_reads_nothing_counts_as_lost_before_memory_does(decoder, model, tmp_path):
    settings = tiny.tiny_settings(model, tmp_path, "127.0.0.1:1")
    engine = Engine.for_decoder(decoder, worker.engine_config(settings, decoder))
    engine.apply(Admit(sequence_id=1, prompt_ids=(1,), sampling=Sampling(), stop=Stop(max_tokens=1), grant_tokens=1))
    report = engine.step()
    assert report is not None
    cache: Any = types.SimpleNamespace(statistics=lambda: types.SimpleNamespace(num_bytes=0))
    term = Term(epoch=1, lease_ttl_s=60.0, heartbeat_interval_s=30.0)
    session = LinkSession(
        DeafCall(), term, EnginePort(engine), cache, registered_s=time.monotonic(), page_bytes=1, load_timeout_s=1.0
    )
    for _ in range(MAX_WAITING_FRAMES + 1):
        session.on_report(report)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(10):
            await session.run(asyncio.Event(), leave_timeout_s=1.0)
    assert caught.group_contains(LinkLost, match=f"{MAX_WAITING_FRAMES} frames")


# --- ends ---


async def silence(stream, *, num_heartbeats):
    """Passes the time in which so many heartbeats would come: that nothing comes has no condition to wait on."""
    await asyncio.sleep(num_heartbeats * 0.05)
    assert stream.frames[-1].WhichOneof("frame") == "leave"


async def test_a_leaving_worker_says_so_last(start):
    async with start() as (server, leave):
        stream = await server.gateway.worker()
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=200, grant_tokens=4)])
        await stream.until(lambda: len(stream.output(1).tokens) == 4, "it runs")
        stream.may_end.clear()
        leave.set()
        await stream.until(lambda: stream.of_kind("leave"), "it says so")
        await silence(stream, num_heartbeats=4)
        assert not stream.ended, "the worker waits until the scheduler has read it"
        stream.may_end.set()
        await stream.until(lambda: stream.ended, "the stream is over")
    assert [frame.WhichOneof("frame") for frame in stream.frames].index("leave") == len(stream.frames) - 1
    assert len(server.gateway.streams) == 1


async def test_a_worker_that_has_no_scheduler_leaves_at_once(model, decoder, tmp_path):
    settings = tiny.tiny_settings(model, tmp_path / "store", "127.0.0.1:1")
    async with asyncio.timeout(5), tiny.serving(settings, decoder) as leave:
        leave.set()


async def caught_from(serving):
    """The errors that a worker ends with."""
    try:
        async with asyncio.timeout(fake.WAIT_S):
            await serving
    except ExceptionGroup as group:
        return group
    raise AssertionError("the worker ended well")


async def test_a_failing_step_ends_the_stream_without_a_leave_and_the_worker_with_an_error(
    model, decoder, tmp_path, monkeypatch
):
    def explode(self, batch, kv):
        raise RuntimeError("the device is gone")

    async with fake.serve(fake.FakeWorkerGateway()) as server:
        serving = worker.serve(tiny.tiny_settings(model, tmp_path, server.address), decoder, asyncio.Event())
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(caught_from(serving), name="failing-worker")
            stream = await server.gateway.worker()
            monkeypatch.setattr(Decoder, "forward", explode)
            stream.send(admit=[fake.admit(1, PROMPT)])
            await stream.until(lambda: stream.ended, "the stream is over")
        error = failing.result()
    assert error.subgroup(EngineFailed) is not None
    assert "the device is gone" in str(error.exceptions[0].__cause__)
    assert stream.of_kind("leave") == []


async def test_a_reset_of_a_failed_engine_does_not_hang(decoder, model, tmp_path, monkeypatch):
    settings = tiny.tiny_settings(model, tmp_path, "127.0.0.1:1")
    port = EnginePort(Engine.for_decoder(decoder, worker.engine_config(settings, decoder)))
    monkeypatch.setattr(Engine, "apply", lambda self, command: os.fsencode(command))
    port.start()
    async with asyncio.timeout(10):
        with pytest.raises(EngineFailed):
            await port.reset()
        with pytest.raises(EngineFailed):
            await port.reset()
        with pytest.raises(EngineFailed):
            await port.watch()
    assert await port.stop()


# --- the lease ---


def test_a_lease_runs_from_the_sending_of_the_last_answered_heartbeat():
    lease = Lease(ttl_s=10.0, now_s=100.0)
    lease.sent(1, 101.0)
    lease.sent(2, 103.0)
    lease.sent(3, 105.0)
    assert lease.expires_s == 110.0
    lease.acked(2)
    assert lease.expires_s == 113.0
    lease.acked(1)
    lease.acked(99)
    assert lease.expires_s == 113.0
    lease.acked(3)
    assert lease.expires_s == 115.0
