"""The shell over real streams: what peers send and hear, and what happens when one dies, freezes or lies."""

import asyncio

import grpc
import pytest

from loraplex.v1 import adapter_pb2, generation_pb2
from loraplex.worker.v1 import frontend_link_pb2, registry_pb2, worker_link_pb2
from loraplex_contract import status
from loraplex_contract.errors import DataLoss
from loraplex_scheduler.core.event import Tick
from tests.scheduler.link_peers import (
    frontend,
    handles,
    registry_stub,
    scheduler,
    token_at,
    until,
    version,
    worker,
)


async def status_of(call) -> tuple[str, str]:
    """(code, text) that a stream ended with."""
    return (await call.code()).name, await call.details()


async def run_to_end(work, front, *ends: tuple[int, int]) -> None:
    for _ in range(400):
        if all(end in front.ended for end in ends):
            return
        await work.step()
        await asyncio.sleep(0.002)
    raise AssertionError(f"not ended: {set(ends) - front.ended.keys()}")


async def test_tokens_of_base_and_adapter_requests_reach_their_frontend_in_order(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        async with worker(service.address) as work, frontend(service.address) as front:
            await front.submit(1, max_tokens=5)
            await front.submit(2, "poet", prompt=(7,), max_tokens=40, n=2)
            await run_to_end(work, front, (1, 0), (2, 0), (2, 1))
        assert front.tokens[1, 0] == [token_at((1, 2, 3), index) for index in range(5)]
        assert front.tokens[2, 0] == front.tokens[2, 1] == [token_at((7,), index) for index in range(40)]
        assert front.accepted == {1, 2}
        assert [a.name for a in front.started[2].adapters] == ["poet"]
        assert {ended.reason for ended in front.ended.values()} == {generation_pb2.FINISH_REASON_MAX_TOKENS}
        assert front.ended[2, 0].usage.num_output_tokens == 40


async def test_a_refusal_comes_in_band_and_the_stream_goes_on(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, "unknown")
        await until(lambda: 1 in front.rejected, "rejected")
        assert front.rejected[1].reason == "ADAPTER_NOT_FOUND"
        assert front.rejected[1].code == grpc.StatusCode.NOT_FOUND.value[0]
        await front.submit(2)
        await run_to_end(work, front, (2, 0))
        assert not work.adapters


async def test_a_failed_load_ends_its_requests_with_the_worker_s_error(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        async with worker(service.address) as work, frontend(service.address) as front:
            work.load_error = status.error_to_pb(DataLoss("the bytes differ from the digest"))
            await front.submit(1, "poet")
            await until(lambda: (1, 0) in front.ended, "ended")
            assert front.ended[1, 0].reason == generation_pb2.FINISH_REASON_ERROR
            assert front.ended[1, 0].error.reason == "ARTIFACT_CORRUPT"


async def test_a_deadline_is_kept_while_other_work_keeps_the_inbox_busy(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, max_tokens=200, timeout=0.3)
        await until(lambda: work.live, "admitted")
        await run_to_end(work, front, (1, 0))
        assert front.ended[1, 0].error.reason == "DEADLINE"
        await until(lambda: not work.live, "retired")


async def test_time_passes_for_the_core_while_reports_never_cease_and_no_deadline_is_set(tmp_path):
    """Request 1 fits only the worker that is lost: after the grace it is told, though the other one is always busy."""
    async with (
        scheduler(tmp_path, no_worker_grace_s=0.3) as service,
        worker(service.address, num_pages=40) as work,
        frontend(service.address) as front,
    ):
        async with worker(service.address, worker_id="big", num_pages=60):
            await front.submit(1, max_tokens=200)
            await front.submit(2, max_tokens=50)
            await until(lambda: service.dispatcher.statistics().num_running_requests == 2, "both run")
        for _ in range(3000):
            if (1, 0) in front.ended:
                break
            await work.step()
            await asyncio.sleep(0.001)
        assert front.ended[1, 0].error.reason == "NO_WORKERS"


async def test_a_stop_and_a_cancel_free_the_pages_and_are_answered(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, max_tokens=200)
        await front.submit(2, max_tokens=200)
        await until(lambda: len(work.live) == 2, "admitted")
        await work.step(3)
        await until(lambda: len(front.tokens.get((1, 0), ())) == 3, "three tokens")
        await front.send(stop=[frontend_link_pb2.LinkStop(handle=1, index=0, num_tokens=2)])
        by_id = frontend_link_pb2.LinkCancel(tenant="red", request_id="id-2", nonce=5)
        nobody = frontend_link_pb2.LinkCancel(tenant="blue", request_id="id-2", nonce=6)
        await front.send(cancel=[nobody, by_id])
        await until(lambda: len(front.ended) == 2 and len(front.cancelled) == 2, "ended")
        assert front.ended[1, 0].reason == generation_pb2.FINISH_REASON_STOP_STRING
        assert front.ended[1, 0].usage.num_output_tokens == 2
        assert front.ended[2, 0].reason == generation_pb2.FINISH_REASON_CANCELLED
        assert front.cancelled == {5: True, 6: False}
        await until(lambda: not work.live, "retired")
        assert service.worker.pages.kv == 0


async def test_a_worker_s_death_moves_its_requests_with_no_token_lost_or_repeated(tmp_path):
    async with scheduler(tmp_path) as service, frontend(service.address) as front:
        async with worker(service.address, worker_id="first") as first:
            for handle in (1, 2, 3):
                await front.submit(handle, max_tokens=60, prompt=(handle,))
            await until(lambda: len(first.live) == 3, "admitted")
            await first.step(20)
            await until(lambda: len(front.tokens.get((3, 0), ())) >= 10, "some tokens")
        async with worker(service.address, worker_id="second") as second:
            await run_to_end(second, front, *handles(1, 2, 3))
        for handle in (1, 2, 3):
            assert front.tokens[handle, 0] == [token_at((handle,), index) for index in range(60)]
            assert front.ended[handle, 0].usage.num_recomputed_tokens > 0


async def test_a_frozen_worker_loses_its_lease_and_its_requests_go_on_elsewhere(tmp_path):
    async with scheduler(tmp_path, lease_ttl_s=0.3) as service, frontend(service.address) as front:
        async with worker(service.address, worker_id="frozen") as frozen:
            await front.submit(1, max_tokens=8)
            await until(lambda: frozen.live, "admitted")
            await asyncio.wait_for(frozen.is_over.wait(), 5)
            code, text = await status_of(frozen.call)
            assert code == "ABORTED"
            assert "lease" in text
        async with worker(service.address, worker_id="lively") as lively:
            await run_to_end(lively, front, (1, 0))


async def test_a_worker_whose_step_loop_stands_still_is_lost_however_often_it_beats(tmp_path):
    async with scheduler(tmp_path, stall_s=0.5) as service, worker(service.address) as work:
        await work.beat(loop_age_s=9.0, has_work=False)
        await until(lambda: work.acks, "acknowledged")
        assert not work.is_over.is_set(), "an idle loop is no sign of trouble"
        await work.beat(loop_age_s=0.6, has_work=True)
        await asyncio.wait_for(work.is_over.wait(), 5)
        assert "stood still" in (await status_of(work.call))[1]
        await until(lambda: service.worker is None, "lost")


async def test_a_worker_whose_report_cannot_be_true_is_fenced_and_its_request_lives(tmp_path):
    async with scheduler(tmp_path) as service, frontend(service.address) as front:
        async with worker(service.address, worker_id="liar") as liar:
            await front.submit(1, max_tokens=8)
            await until(lambda: liar.live, "admitted")
            next(iter(liar.live.values())).extend([0, 0])
            await liar.step()
            await asyncio.wait_for(liar.is_over.wait(), 5)
            assert (await status_of(liar.call))[0] == "ABORTED"
        async with worker(service.address, worker_id="honest") as honest:
            await run_to_end(honest, front, (1, 0))
        assert front.tokens[1, 0] == [token_at((1, 2, 3), index) for index in range(8)]


async def test_reports_of_another_epoch_are_dropped(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, max_tokens=8)
        await until(lambda: work.live, "admitted")
        report = work._report()
        report.epoch = work.epoch - 1
        await work.call.write(worker_link_pb2.ServeRequest(report=report))
        await work.beat()
        await until(lambda: work.acks, "acknowledged")
        assert not front.tokens


async def test_epochs_grow_when_a_worker_registers_again_and_when_the_scheduler_restarts(tmp_path):
    epochs = []
    for _ in range(2):
        async with scheduler(tmp_path) as service:
            for _ in range(2):
                async with worker(service.address) as work:
                    epochs.append(work.epoch)
    assert epochs == sorted(set(epochs))


async def test_a_worker_that_registers_twice_keeps_the_new_stream(tmp_path):
    async with (
        scheduler(tmp_path) as service,
        frontend(service.address) as front,
        worker(service.address) as old,
        worker(service.address) as new,
    ):
        old.call.cancel()
        await old.is_over.wait()
        await front.submit(1)
        await run_to_end(new, front, (1, 0))
        assert service.worker.epoch == new.epoch


async def test_the_requests_of_a_lost_frontend_are_retired(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work:
        async with frontend(service.address) as front:
            await front.submit(1, max_tokens=200)
            await until(lambda: work.live, "admitted")
        await until(lambda: not work.live, "retired")
        await until(lambda: service.worker.pages.kv == 0, "pages freed")


async def test_the_late_end_of_a_frontend_s_old_stream_spares_its_new_one(tmp_path):
    async with (
        scheduler(tmp_path) as service,
        worker(service.address) as work,
        frontend(service.address) as old,
        frontend(service.address) as new,
    ):
        await new.submit(2, max_tokens=30)
        await until(lambda: work.live, "admitted")
        old.call.cancel()
        await old.is_over.wait()
        await run_to_end(work, new, (2, 0))
        assert len(new.tokens[2, 0]) == 30


async def test_a_handle_in_use_ends_the_stream_that_reuses_it(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, max_tokens=200)
        await until(lambda: work.live, "admitted")
        await front.submit(1)
        await asyncio.wait_for(front.is_over.wait(), 5)
        assert (await status_of(front.call))[0] == "INVALID_ARGUMENT"


async def test_frontends_hear_of_workers_at_once(tmp_path):
    async with scheduler(tmp_path, heartbeat_s=30.0) as service, frontend(service.address) as front:
        async with worker(service.address):
            await until(lambda: front.cluster.num_ready_workers == 1, "a worker is there")
            assert front.cluster.max_context_tokens == 256
        await until(lambda: front.cluster.num_ready_workers == 0, "it is gone")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"protocol_version": 2}, "FAILED_PRECONDITION"),
        ({"num_pages": 0}, "INVALID_ARGUMENT"),
        ({"worker_id": ""}, "INVALID_ARGUMENT"),
        ({"model_fingerprint": "0" * 64}, "FAILED_PRECONDITION"),
    ],
)
async def test_a_worker_that_cannot_be_used_is_turned_away(tmp_path, change, code):
    async with scheduler(tmp_path) as service, worker(service.address, worker_id="good"):
        with pytest.raises(ExceptionGroup) as caught:
            async with worker(service.address, **change):
                pass
        (error,) = caught.value.exceptions
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code().name == code
        assert [w.worker_id for w in service.dispatcher.statistics().workers] == ["good"]


async def test_a_frontend_of_another_model_is_turned_away(tmp_path):
    async with scheduler(tmp_path) as service, worker(service.address):
        with pytest.raises(ExceptionGroup) as caught:
            async with frontend(service.address, fingerprint="0" * 64):
                pass
        (error,) = caught.value.exceptions
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_unregistering_waits_for_the_running_request_and_frees_the_bytes(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        async with worker(service.address) as work, frontend(service.address) as front:
            await front.submit(1, "poet", max_tokens=6)
            await until(lambda: work.live, "admitted")
            removing = asyncio.ensure_future(
                registry.RemoveEntry(registry_pb2.RemoveEntryRequest(tenant="red", name="poet"))
            )
            read = registry_pb2.ReadEntryRequest(tenant="red", name="poet")
            for _ in range(200):
                if (await registry.ReadEntry(read)).entry.state == adapter_pb2.ADAPTER_STATE_DRAINING:
                    break
            await service.dispatcher.apply(Tick())
            await front.submit(2, "poet")
            await until(lambda: 2 in front.rejected, "refused")
            assert front.rejected[2].reason == "ADAPTER_DRAINING"
            assert not removing.done()
            await run_to_end(work, front, (1, 0))
            answer = await asyncio.wait_for(removing, 5)
            assert list(answer.unreferenced_digests) == ["a" * 64]
            assert not work.adapters
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await registry.ReadEntry(read)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_names_survive_a_restart_of_the_scheduler(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        await registry.CommitVersion(version(digest="b" * 64, allow_update=True))
    async with scheduler(tmp_path) as service, worker(service.address) as work, frontend(service.address) as front:
        await front.submit(1, "poet")
        await run_to_end(work, front, (1, 0))
        assert (front.started[1].adapters[0].version, front.started[1].adapters[0].digest) == (2, "b" * 64)
