"""Who gets in, who grows, who gives way, and for how long one may be passed over."""

import pytest

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.finish import FinishReason
from tests.scheduler.rig import Rig, failure


def test_pages_are_reserved_for_the_prompt_and_the_grant_and_no_more():
    rig = Rig()
    rig.connect_worker(num_pages=20, page_size=4)
    rig.submit(num_prompt=5, max_tokens=40)
    assert rig.of_kind(commands.Admit)[0].grant_tokens == 6
    assert rig.core.statistics().workers[0].pages.kv == 3
    rig.submit(num_prompt=5, max_tokens=2)
    assert rig.of_kind(commands.Admit)[1].grant_tokens == 2


def test_a_grant_is_extended_before_it_ends_and_never_past_max_tokens():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=14)
    rig.finish(client)
    grants = [grant.grant_tokens for grant in rig.of_kind(commands.Grant)]
    assert grants == sorted(set(grants)), "a grant was repeated or lowered"
    assert grants[-1] == 14
    assert len(client.outputs[0]) == 14


def test_higher_priority_goes_first_and_equal_ones_in_the_order_of_arrival():
    rig = Rig()
    rig.connect_worker(max_sequences=1)
    running = rig.submit(priority=-9)
    low, first, second, high = (rig.submit(priority=p) for p in (5, 0, 0, -5))
    rig.finish(running, low, first, second, high)
    order = [admit.prompt_ids for admit in rig.of_kind(commands.Admit)]
    assert order == [c.submitted.prompt_ids for c in (running, high, first, second, low)]


def test_what_does_not_fit_is_skipped_and_holds_up_nobody():
    rig = Rig()
    rig.connect_worker(num_pages=8, page_size=4)
    running = rig.submit(num_prompt=12, max_tokens=6)
    big, small = rig.submit(num_prompt=20, max_tokens=6), rig.submit(num_prompt=2, max_tokens=2)
    assert rig.is_running(running)
    assert rig.is_running(small)
    assert not rig.is_running(big)


def test_past_the_bound_nothing_younger_overtakes_until_the_big_one_is_in():
    rig = Rig(max_overtake_ns=1_000_000_000)
    rig.connect_worker(num_pages=8, page_size=4)
    running = rig.submit(num_prompt=12, max_tokens=12)
    big = rig.submit(num_prompt=20, max_tokens=6)
    overtaker = rig.submit(num_prompt=2, max_tokens=2)
    assert rig.is_running(overtaker), "within the bound it was meant to get in"
    rig.finish(overtaker)
    rig.pass_time(1.0)
    younger = [rig.submit(num_prompt=2, max_tokens=2) for _ in range(3)]
    assert not any(rig.is_running(client) for client in younger), "overtaken past the bound"
    rig.finish(running)
    assert rig.is_running(big)
    rig.finish(big, *younger)


def test_a_stream_of_small_requests_cannot_starve_a_big_one_past_the_stated_bound():
    """The worst wait of docs/architecture.md with no adapter to load: T_drain + max_overtake + T_drain."""
    rig = Rig(max_overtake_ns=1_000_000_000)
    rig.connect_worker(num_pages=10, page_size=4, max_sequences=8)
    longest_s = 12 * 0.01
    for _ in range(5):
        rig.submit(num_prompt=2, max_tokens=12)
    big = rig.submit(num_prompt=30, max_tokens=6)
    start_ns = rig.now_ns
    while not rig.is_running(big):
        rig.pass_time(0.01)
        rig.step()
        while not rig.is_running(rig.submit(num_prompt=2, max_tokens=12)):
            break
        assert (rig.now_ns - start_ns) / 1e9 <= 1.0 + 2 * longest_s + 0.02, "waited past the bound"
    assert (rig.now_ns - start_ns) / 1e9 >= 0.9, "the small ones were meant to be in the way"


def test_an_adapter_that_is_loading_holds_up_nobody_and_is_asked_for_when_queued():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker(max_sequences=1)
    rig.register("slow")
    running = rig.submit()
    waiting = rig.submit("slow")
    assert [load.digest for load in rig.of_kind(commands.LoadAdapter)] == ["red-slow-1"], "not asked for when queued"
    base = rig.submit()
    rig.finish(running, base)
    assert not waiting.is_over
    rig.end_load("red-slow-1")
    rig.finish(waiting)


def test_waiting_for_a_load_does_not_count_as_being_overtaken():
    rig = Rig(max_overtake_ns=1_000_000_000)
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("slow")
    rig.submit("slow")
    rig.pass_time(5)
    assert rig.is_running(rig.submit())


def test_a_candidate_that_was_passed_over_does_not_use_up_the_cap_on_adapters():
    rig = Rig(max_adapters_per_step=2)
    rig.holds_loads = True
    rig.connect_worker(num_pages=40)
    for name in ("a", "b", "c"):
        rig.register(name)
    loading = [rig.submit("a"), rig.submit("b")]
    rig.submit("c")
    rig.end_load("red-c-1")
    assert {admit.adapters[0].digest for admit in rig.of_kind(commands.Admit)} == {"red-c-1"}
    assert not any(rig.is_running(client) for client in loading)


def test_no_more_adapters_than_the_cap_are_admitted_together():
    rig = Rig(max_adapters_per_step=1)
    rig.connect_worker()
    for name in ("a", "b"):
        rig.register(name)
    first, second, same, base = rig.submit("a"), rig.submit("b"), rig.submit("a"), rig.submit()
    assert [rig.is_running(c) for c in (first, second, same, base)] == [True, False, True, True]
    rig.finish(first, second, same, base)


def test_the_newest_gives_way_when_a_grant_cannot_be_extended_and_goes_on_where_it_was():
    rig = Rig(admission_watermark=0.0)
    rig.connect_worker(num_pages=6, page_size=4)
    old, new = rig.submit(num_prompt=4, max_tokens=18), rig.submit(num_prompt=4, max_tokens=18)
    rig.step(4)
    assert rig.is_running(old)
    assert not rig.is_running(new), "the newest did not give way"
    before = len(new.outputs[0])
    assert 0 < before < 18
    rig.finish(old, new)
    resumed = rig.of_kind(commands.Admit)[-1]
    assert resumed.prompt_ids == new.submitted.prompt_ids
    assert list(resumed.emitted_ids) == new.outputs[0][: len(resumed.emitted_ids)] != []
    assert new.finishes[0].usage.num_recomputed_tokens > 0
    assert old.finishes[0].usage.num_recomputed_tokens == 0


def test_tokens_of_a_preempted_sequence_s_earlier_life_are_dropped():
    rig = Rig(admission_watermark=0.0)
    worker = rig.connect_worker(num_pages=6, page_size=4)
    rig.submit(num_prompt=4, max_tokens=18), rig.submit(num_prompt=4, max_tokens=18)
    rig.step(3)
    late = worker.must_step()
    assert len(late.emissions) == 2
    rig.turn(late)
    retired = rig.of_kind(commands.Retire)[0].sequence_id
    stale = events.Emission(sequence_id=retired, first_index=4, token_ids=(1, 2, 3))
    turn = rig.turn(events.StepReported(worker_id="w", epoch=worker.info.epoch, step=99, emissions=(stale,)))
    assert not [c for c in turn if isinstance(c, commands.Tokens)]


def test_overdue_requests_that_wait_for_loads_do_not_evict_each_other_for_ever():
    """Found by the state machine: the younger's drain took what had just been loaded for the elder, in turn."""
    rig = Rig(max_overtake_ns=1_000_000_000)
    rig.holds_loads = True
    rig.connect_worker(num_pages=12, page_size=4)
    for name, pages in (("a", 5), ("b", 5), ("c", 3)):
        rig.register(name, pages=pages)
    in_the_way = rig.submit(num_prompt=36, max_tokens=6)
    elder, younger = rig.submit("a", "b", max_tokens=4), rig.submit("c", max_tokens=4)
    rig.pass_time(1.5)
    assert not rig.of_kind(commands.LoadAdapter), "both are meant to be overdue before their loads"
    rig.finish(in_the_way)
    for _ in range(400):
        if elder.is_over and younger.is_over:
            break
        rig.pass_time(0.1)
        for digest in sorted(rig.workers["w"].loading)[:1]:
            rig.end_load(digest)
        rig.step()
    assert elder.is_over
    assert younger.is_over
    assert len(rig.of_kind(commands.LoadAdapter)) == 3, "adapters went back and forth"


def test_a_deadline_ends_a_request_that_waits_and_one_that_runs():
    rig = Rig()
    rig.connect_worker(max_sequences=1)
    due = rig.now_ns + 1_000_000_000
    running = rig.submit(max_tokens=30, deadline_ns=due)
    waiting = rig.submit(max_tokens=30, deadline_ns=due)
    rig.step(3)
    rig.pass_time(0.999)
    assert not running.is_over
    rig.pass_time(0.001)
    assert failure(running) == failure(waiting) == ("DeadlineExceeded", "DEADLINE")
    assert running.finishes[0].error.metadata == {"tokensProduced": "3"}
    assert not rig.workers["w"].running


def test_a_queue_deadline_spares_what_has_been_admitted():
    rig = Rig()
    rig.connect_worker(max_sequences=1)
    due = rig.now_ns + 1_000_000_000
    running = rig.submit(max_tokens=30, queue_deadline_ns=due)
    waiting = rig.submit(max_tokens=30, queue_deadline_ns=due)
    rig.pass_time(1)
    assert not running.is_over
    assert failure(waiting) == ("DeadlineExceeded", "QUEUE_TIMEOUT")


def test_a_time_limit_ends_with_what_there_is_and_no_error():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=30, time_limit_ns=rig.now_ns + 1_000_000_000)
    rig.step(5)
    rig.pass_time(1)
    finish = client.finishes[0]
    assert (finish.reason, finish.error, finish.usage.num_output_tokens) == (FinishReason.TIME_LIMIT, None, 5)


def test_a_stop_string_ends_one_sequence_and_counts_what_came_before_it():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=30, num_sequences=2)
    rig.step(5)
    rig.turn(events.SequenceStopped(key=client.submitted.key, index=1, num_tokens=4))
    assert client.finishes[1].reason is FinishReason.STOP_STRING
    assert client.finishes[1].usage.num_output_tokens == 4
    assert 0 not in client.finishes
    assert len(rig.workers["w"].running) == 1


@pytest.mark.parametrize("by_id", [False, True])
def test_a_cancel_ends_every_sequence_and_a_second_one_finds_nothing(by_id):
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=30, num_sequences=2)
    names = {"tenant": "red", "request_id": client.submitted.request_id} if by_id else {"key": client.submitted.key}
    cancel = events.CancelRequested(frontend_id="front", nonce=7, **names)
    assert commands.CancelAnswered(frontend_id="front", nonce=7, found=True) in rig.turn(cancel)
    assert [finish.reason for finish in client.finishes.values()] == [FinishReason.CANCELLED] * 2
    assert not rig.workers["w"].running
    assert rig.turn(cancel) == [commands.CancelAnswered(frontend_id="front", nonce=7, found=False)]


def test_another_tenant_cannot_cancel_by_guessing_a_request_id():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=30)
    rig.turn(events.CancelRequested(frontend_id="front", tenant="blue", request_id=client.submitted.request_id))
    assert not client.is_over


def test_the_requests_of_a_lost_frontend_are_dropped_with_their_pages_and_leases():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    rig.submit("poet", max_tokens=30), rig.submit(max_tokens=30)
    rig.clients.lose("front")
    rig.turn(events.FrontendLost(frontend_id="front", incarnation="1"))
    statistics = rig.core.statistics()
    assert statistics.num_leases == statistics.workers[0].pages.kv == 0
    assert not rig.workers["w"].running


def test_timing_tells_the_wait_the_load_and_the_first_token():
    rig = Rig()
    rig.holds_loads = True
    rig.connect_worker()
    rig.register("poet")
    client = rig.submit("poet", max_tokens=2)
    rig.pass_time(0.5)
    rig.end_load("red-poet-1")
    rig.pass_time(0.25)
    rig.step(2)
    timing = client.finishes[0].timing
    assert (timing.queued_ns, timing.adapter_load_ns) == (500_000_000, 500_000_000)
    assert (timing.first_token_ns, timing.total_ns) == (750_000_000, 750_000_000)
