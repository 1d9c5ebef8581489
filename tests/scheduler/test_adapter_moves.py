"""Loads, evictions, failures and unregistering, as the core asks for them."""

from loraplex_contract.errors import DataLoss, Unavailable
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.finish import FinishReason
from tests.scheduler.rig import Rig, failure, refusal

DRAIN, CANCEL = events.UnregisterMode.DRAIN, events.UnregisterMode.CANCEL


def gone(rig: Rig) -> list[commands.Command]:
    return [c for c in rig.commands if isinstance(c, commands.VersionReleased | commands.AdapterGone)]


def test_the_longest_unused_idle_adapter_gives_way_and_a_used_one_never():
    rig = Rig()
    rig.connect_worker(num_pages=14)
    for name in ("a", "b", "c"):
        rig.register(name, pages=4)
    rig.finish(rig.submit("a"))
    rig.pass_time(1)
    rig.finish(rig.submit("b"))
    running = rig.submit("a", max_tokens=8)
    rig.pass_time(1)
    client = rig.submit("c")
    assert [evict.digest for evict in rig.of_kind(commands.EvictAdapter)] == ["red-b-1"]
    rig.finish(running, client)


def test_an_idle_adapter_stays_warm_while_nobody_needs_its_pages():
    rig = Rig()
    rig.connect_worker()
    rig.register("a")
    rig.finish(rig.submit("a"))
    rig.pass_time(100)
    rig.finish(rig.submit("a"))
    assert len(rig.of_kind(commands.LoadAdapter)) == 1
    assert not rig.of_kind(commands.EvictAdapter)


def test_a_corrupt_adapter_ends_those_who_wait_for_it_and_nobody_else():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("good"), rig.register("bad")
    hit, both, spared, base = rig.submit("bad"), rig.submit("good", "bad"), rig.submit("good"), rig.submit()
    rig.end_load("red-bad-1", DataLoss("the bytes differ"))
    assert failure(hit) == failure(both) == ("DataLoss", "ARTIFACT_CORRUPT")
    rig.end_load("red-good-1")
    rig.finish(spared, base)
    assert spared.finishes[0].reason is base.finishes[0].reason is FinishReason.MAX_TOKENS


def test_a_failed_load_is_remembered_for_its_backoff_and_then_tried_again():
    rig = Rig(load_backoff_ns=1_000_000_000)
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("bad")
    rig.submit("bad")
    rig.end_load("red-bad-1", DataLoss("the bytes differ"))
    assert failure(rig.submit("bad")) == ("DataLoss", "ARTIFACT_CORRUPT")
    assert len(rig.of_kind(commands.LoadAdapter)) == 1, "asked again within the backoff"
    rig.pass_time(1)
    client = rig.submit("bad")
    rig.end_load("red-bad-1")
    rig.finish(client)


def test_a_load_that_failed_for_want_of_room_is_tried_again_for_those_who_wait():
    rig = Rig(max_load_attempts=3, load_backoff_ns=1_000_000_000)
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("a")
    client = rig.submit("a")
    for seconds in (1, 2):
        rig.end_load("red-a-1", Unavailable("no room", reason="HOST_CACHE_FULL"))
        assert not client.is_over
        rig.pass_time(seconds)
    rig.end_load("red-a-1", Unavailable("no room", reason="HOST_CACHE_FULL"))
    assert failure(client) == ("Unavailable", "HOST_CACHE_FULL")


def test_a_load_that_fails_on_one_worker_is_tried_on_another():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker("w"), rig.connect_worker("v")
    rig.register("a")
    client = rig.submit("a")
    (first,) = [load.worker_id for load in rig.of_kind(commands.LoadAdapter)]
    rig.end_load("red-a-1", DataLoss("a bad disk"), worker_id=first)
    (second,) = [load.worker_id for load in rig.of_kind(commands.LoadAdapter)[1:]]
    assert second != first
    rig.end_load("red-a-1", worker_id=second)
    rig.finish(client)


def test_a_load_that_is_never_answered_fences_the_worker():
    rig = Rig(load_timeout_ns=1_000_000_000)
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("a")
    rig.submit("a")
    rig.pass_time(2)
    assert not rig.of_kind(commands.FenceWorker)
    rig.pass_time(0.1)
    assert len(rig.of_kind(commands.FenceWorker)) == 1


def test_requests_keep_the_version_that_they_began_with():
    rig = Rig()
    rig.connect_worker()
    old = rig.register("poet", number=1)
    running = rig.submit("poet", max_tokens=20)
    rig.step(5)
    new = rig.register("poet", number=2)
    later = rig.submit("poet")
    rig.finish(running, later)
    assert [admit.adapters[0].digest for admit in rig.of_kind(commands.Admit)] == [old, new]


def test_drain_refuses_new_requests_finishes_running_ones_and_then_frees_the_bytes():
    rig = Rig()
    rig.connect_worker()
    digest = rig.register("poet")
    running = rig.submit("poet", max_tokens=8)
    rig.unregister("poet", DRAIN)
    assert refusal(rig.submit("poet")) == ("FailedPrecondition", "ADAPTER_DRAINING")
    assert not gone(rig), "gone while a request runs on it"
    rig.finish(running)
    assert running.finishes[0].reason is FinishReason.MAX_TOKENS
    expected = [commands.VersionReleased(digest=digest), commands.AdapterGone(tenant="red", name="poet")]
    assert gone(rig) == expected
    assert digest not in rig.workers["w"].adapters
    assert refusal(rig.submit("poet")) == ("NotFound", "ADAPTER_NOT_FOUND")


def test_cancel_ends_running_requests_with_the_reason():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    running, base = rig.submit("poet", max_tokens=20), rig.submit(max_tokens=20)
    rig.unregister("poet", CANCEL)
    assert running.finishes[0].reason is FinishReason.CANCELLED
    assert failure(running) == ("Cancelled", "ADAPTER_UNREGISTERED")
    assert not base.is_over
    assert gone(rig)[-1] == commands.AdapterGone(tenant="red", name="poet")


def test_gone_waits_for_a_load_in_flight_and_for_the_worker_s_answer():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("poet")
    rig.submit("poet")
    rig.unregister("poet", CANCEL)
    assert not gone(rig), "gone while a worker loads it"
    rig.end_load("red-poet-1")
    assert gone(rig)


def test_gone_does_not_wait_for_a_worker_that_is_lost():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("poet")
    rig.submit("poet")
    rig.unregister("poet", CANCEL)
    rig.lose_worker()
    assert gone(rig)


def test_a_version_that_another_name_points_at_is_not_released():
    rig = Rig()
    rig.connect_worker()
    for name in ("one", "two"):
        rig.turn(events.AdapterCommitted(tenant="red", name=name, number=1, digest="d", num_parameters=40))
    rig.finish(rig.submit("one"))
    rig.unregister("one", DRAIN)
    assert gone(rig) == [commands.AdapterGone(tenant="red", name="one")]
    assert "d" in rig.workers["w"].adapters
    rig.unregister("two", DRAIN)
    assert gone(rig)[1:] == [commands.VersionReleased(digest="d"), commands.AdapterGone(tenant="red", name="two")]


def test_unregistering_an_unknown_name_is_answered_at_once():
    rig = Rig()
    assert rig.unregister("nobody", DRAIN) == [commands.AdapterGone(tenant="red", name="nobody")]


def test_a_name_can_be_registered_again_after_it_is_gone():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    rig.unregister("poet", DRAIN)
    rig.register("poet")
    rig.finish(rig.submit("poet"))
