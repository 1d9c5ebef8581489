"""The registry's service over real streams: what is under way, what is watched, what expires, what is in use."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex.worker.v1 import registry_pb2
from loraplex_contract import status
from loraplex_contract.errors import InvalidArgument, OutOfRange
from loraplex_scheduler.registrations import FAILED_KEPT_NS, SILENT_NS, Progress, Registration, Registrations
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.watch_history import WatchHistory
from tests.frontend.service import reason_of
from tests.scheduler.link_peers import frontend, registry_stub, scheduler, until, version, worker
from tests.scheduler.test_registry import new, url

PENDING = adapter_pb2.ADAPTER_STATE_PENDING
FETCHING = adapter_pb2.ADAPTER_STATE_FETCHING
READY = adapter_pb2.ADAPTER_STATE_READY
FAILED = adapter_pb2.ADAPTER_STATE_FAILED
DRAINING = adapter_pb2.ADAPTER_STATE_DRAINING
DELETED = adapter_pb2.ADAPTER_STATE_DELETED


def begin(name: str, state: Any = PENDING, attempt: str = "1", **fields: Any) -> registry_pb2.BeginRegistrationRequest:
    return registry_pb2.BeginRegistrationRequest(tenant="red", name=name, state=state, attempt_id=attempt, **fields)


def remove(name: str = "poet", **fields: Any) -> registry_pb2.RemoveEntryRequest:
    return registry_pb2.RemoveEntryRequest(tenant="red", name=name, **fields)


async def names_and_states(registry: Any, **filters: Any) -> list[tuple[str, int]]:
    """Over all pages of two."""
    found, token = [], ""
    for _ in range(20):
        request = registry_pb2.ListEntriesRequest(tenant="red", page_size=2, page_token=token, **filters)
        page = await registry.ListEntries(request)
        found += [(entry.name, entry.state) for entry in page.entries]
        token = page.next_page_token
        if not token:
            return found
    raise AssertionError("the pages do not end")


async def failure(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, reason_of(caught.value)


class Watch:
    """What one watch has said, as it comes."""

    def __init__(self, registry: Any, from_revision: int = 0, tenant: str = "red") -> None:
        self.call = registry.WatchEntries(registry_pb2.WatchEntriesRequest(tenant=tenant, from_revision=from_revision))
        self.revision = 0

    async def next(self) -> registry_pb2.WatchEntriesResponse:
        async with asyncio.timeout(5):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        assert message.revision >= self.revision
        self.revision = message.revision
        return message

    async def the_list(self) -> list[str]:
        names: list[str] = []
        while not (message := await self.next()).list_complete:
            names += [entry.name for entry in message.changed]
        return names

    async def changes(self, count: int) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        while len(seen) < count:
            seen += [(entry.name, entry.state) for entry in (await self.next()).changed]
        return seen


# --- registrations under way ---


async def test_a_registration_is_seen_in_order_among_the_names_that_are_ready(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        for name in ("b", "d", "e"):
            await registry.CommitVersion(version(name))
        await registry.BeginRegistration(begin("a"))
        await registry.BeginRegistration(begin("c", FETCHING))
        await registry.BeginRegistration(begin("d", FETCHING))
        expected = [("a", PENDING), ("b", READY), ("c", FETCHING), ("d", READY), ("e", READY)]
        assert await names_and_states(registry) == expected
        assert await names_and_states(registry, states=[FETCHING]) == [("c", FETCHING)]
        assert await names_and_states(registry, states=[READY]) == [("b", READY), ("d", READY), ("e", READY)]
        assert await names_and_states(registry, name_prefix="c") == [("c", FETCHING)]


async def test_a_refused_registration_says_why_until_the_next_attempt(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        error = status.error_to_pb(InvalidArgument("no tensors", reason="ADAPTER_MALFORMED"))
        await registry.BeginRegistration(begin("a", FAILED, error=error))
        entry = (await registry.ReadEntry(registry_pb2.ReadEntryRequest(tenant="red", name="a"))).entry
        assert (entry.state, entry.error.reason) == (FAILED, "ADAPTER_MALFORMED")
        await registry.BeginRegistration(begin("a", FETCHING, attempt="2"))
        await registry.BeginRegistration(begin("a", FAILED, attempt="1", error=error))
        assert await names_and_states(registry) == [("a", FETCHING)], "a late failure of an older attempt is dropped"
        await registry.CommitVersion(version("a"))
        assert await names_and_states(registry) == [("a", READY)]


async def test_a_refused_registration_can_be_removed_at_once(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.BeginRegistration(begin("a", FAILED))
        assert (await registry.RemoveEntry(remove("a"))).entry.state == DELETED
        assert await names_and_states(registry) == []
        assert await failure(registry.RemoveEntry(remove("a"))) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


def test_an_attempt_whose_frontend_died_fails_and_is_forgotten():
    now_ns = [0]
    registrations = Registrations(lambda: now_ns[0])
    registrations.put(
        Registration(
            tenant="red",
            name="a",
            attempt_id="1",
            state=Progress.FETCHING,
            revision=1,
            began_ns=0,
            updated_ns=0,
        )
    )
    now_ns[0] = SILENT_NS + 1
    found = registrations.get("red", "a")
    assert found is not None
    assert (found.state, found.error.reason) == (Progress.FAILED, "REGISTRATION_LOST")
    now_ns[0] += FAILED_KEPT_NS + 1
    assert registrations.get("red", "a") is None


# --- watching ---


async def test_a_watch_is_the_list_and_then_every_change_of_the_tenant(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version("a"))
        await registry.CommitVersion(version("theirs", tenant="blue"))
        watch = Watch(registry)
        assert await watch.the_list() == ["a"]
        await registry.BeginRegistration(begin("b", FETCHING))
        await registry.CommitVersion(version("b"))
        await registry.CommitVersion(version("theirs-2", tenant="blue"))
        await registry.RemoveEntry(remove("a"))
        seen = await watch.changes(4)
        assert seen == [("b", FETCHING), ("b", READY), ("a", DRAINING), ("a", DELETED)]
        watch.call.cancel()


async def test_a_watch_goes_on_where_another_one_ended_and_misses_nothing(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        first = Watch(registry)
        assert await first.the_list() == []
        first.call.cancel()
        for name in ("a", "b"):
            await registry.CommitVersion(version(name))
        page = await registry.ListEntries(registry_pb2.ListEntriesRequest(tenant="red"))
        again = Watch(registry, from_revision=first.revision)
        assert (await again.next()).list_complete
        assert await again.changes(2) == [("a", READY), ("b", READY)]
        assert again.revision == page.revision, "a list says from where to watch"
        again.call.cancel()


async def test_a_revision_that_is_not_kept_is_out_of_range(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        watch = Watch(registry, from_revision=10**9)
        assert await failure(watch.call.read()) == ("OUT_OF_RANGE", "WATCH_COMPACTED")


def change(revision: int) -> Registration:
    given = {"tenant": "red", "attempt_id": "1", "state": Progress.PENDING, "began_ns": 0, "updated_ns": 0}
    return Registration(name=f"a{revision}", revision=revision, **given)  # type: ignore[arg-type]


async def test_the_history_is_bounded_and_who_falls_off_its_end_is_told(tmp_path):
    history = WatchHistory(10, max_changes=3)
    for revision in (11, 13, 14, 17):
        history.add(change(revision))
    assert [entry.revision for entry in history.after(11, 9)] == [13, 14, 17]
    assert [entry.revision for entry in history.after(13, 1)] == [14]
    assert history.after(17, 9) == []
    for unknown in (10, 18):
        with pytest.raises(OutOfRange):
            history.after(unknown, 9)


async def test_all_who_wait_hear_of_a_change(tmp_path):
    history = WatchHistory(0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(history.wait(0, 60))
        await asyncio.sleep(0)
        history.add(change(1))


# --- expiry ---


def seconds_from_now(seconds: float) -> timestamp_pb2.Timestamp:
    moment = timestamp_pb2.Timestamp()
    moment.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return moment


async def test_an_expired_name_drains_and_its_running_request_finishes(tmp_path):
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        watch = Watch(registry)
        await watch.the_list()
        async with worker(service.address) as work, frontend(service.address) as front:
            await front.submit(1, "poet", max_tokens=3)
            await until(lambda: work.live, "admitted")
            entry = registry_pb2.UpdateEntryRequest(tenant="red", name="poet", expire_time=seconds_from_now(0.05))
            entry.update_mask.paths.append("expire_time")
            await registry.UpdateEntry(entry)
            assert await watch.changes(2) == [("poet", READY), ("poet", DRAINING)]
            await front.submit(2, "poet")
            await until(lambda: 2 in front.rejected, "refused")
            await work.step(3)
            await until(lambda: (1, 0) in front.ended, "finished")
            assert len(front.tokens[1, 0]) == 3
            assert await watch.changes(1) == [("poet", DELETED)]
        watch.call.cancel()
        garbage = await registry.ClaimGarbage(registry_pb2.ClaimGarbageRequest())
        assert list(garbage.digests) == ["a" * 64], "nobody waited for it, so whoever sweeps gets it"


async def test_a_name_that_expired_while_the_scheduler_was_away_drains_at_its_start(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new(expires_ns=1))
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        async with asyncio.timeout(5):
            while await names_and_states(registry):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


# --- in use ---


async def test_a_name_in_use_stays_if_the_caller_wants_that(tmp_path):
    careful = remove(mode=adapter_pb2.UNREGISTER_MODE_FAIL_IF_IN_USE)
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        async with worker(service.address) as work, frontend(service.address) as front:
            await front.submit(1, "poet", max_tokens=2)
            await until(lambda: work.live, "admitted")
            assert await failure(registry.RemoveEntry(careful)) == ("FAILED_PRECONDITION", "ADAPTER_IN_USE")
            read = await registry.ReadEntry(registry_pb2.ReadEntryRequest(tenant="red", name="poet"))
            assert (read.entry.state, read.entry.version.num_leases) == (READY, 1)
            await work.step(2)
            await until(lambda: (1, 0) in front.ended, "finished")
            assert (await registry.RemoveEntry(careful)).entry.state == DELETED


async def test_a_request_that_waits_without_a_worker_holds_its_name(tmp_path):
    careful = remove(mode=adapter_pb2.UNREGISTER_MODE_FAIL_IF_IN_USE)
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        async with frontend(service.address) as front:
            await front.submit(1, "poet")
            await until(lambda: 1 in front.accepted, "queued")
            assert await failure(registry.RemoveEntry(careful)) == ("FAILED_PRECONDITION", "ADAPTER_IN_USE")


# --- repetitions ---


async def test_an_unregistration_whose_answer_was_lost_can_be_asked_again(tmp_path):
    identity = registry_pb2.RequestIdentity(request_id="r", fingerprint="f" * 64)
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        await registry.CommitVersion(version())
        for _ in range(2):
            assert (await registry.RemoveEntry(remove(identity=identity))).entry.state == DELETED
        assert await failure(registry.RemoveEntry(remove())) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


async def test_a_registration_that_was_carried_out_is_answered_before_anything_is_fetched(tmp_path):
    identity = registry_pb2.RequestIdentity(request_id="r", fingerprint="f" * 64)
    async with scheduler(tmp_path) as service, registry_stub(service.address) as registry:
        assert not (await registry.BeginRegistration(begin("poet", identity=identity))).HasField("done")
        await registry.CommitVersion(version(identity=identity))
        assert (await registry.BeginRegistration(begin("poet", identity=identity))).done.version.number == 1
        other = registry_pb2.RequestIdentity(request_id="r", fingerprint="0" * 64)
        reused = registry.BeginRegistration(begin("poet", identity=other))
        assert await failure(reused) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
