"""Who waits for whom: counters of service, shares of the slots, the reserve for newcomers, late admission."""

import itertools
from typing import Any

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.fair_share import FairShare, RecentTenants
from loraplex_scheduler.core.prefill_backlog import PrefillBacklog
from tests.scheduler.client_ledger import Client
from tests.scheduler.rig import Rig, failure, refusal

BIG: dict[str, Any] = {"num_pages": 400, "max_sequences": 16, "max_step_tokens": 512}


def flooded(num_flood: int = 40, **config: float) -> Rig:
    """One worker that is full of one tenant, with as much again in the queue."""
    rig = Rig(max_overtake_ns=1 << 60, **config)
    rig.connect_worker(**BIG)
    rig.finish(rig.submit(tenant="blue", max_tokens=1))
    for _ in range(num_flood):
        rig.submit(tenant="red", max_tokens=24)
    return rig


def test_a_tenant_that_comes_to_a_full_worker_is_in_at_once():
    rig = flooded()
    quiet = rig.submit(tenant="blue")
    assert rig.is_running(quiet), "it waits behind a tenant that holds everything"


def test_newcomers_take_the_reserve_first_and_then_the_latest_of_the_tenant_that_holds_most():
    rig = flooded(fair_reserve=1 / 16)
    assert len(rig.workers["w"].running) == 15, "one slot is left to others"
    rig.submit(tenant="blue")
    assert not rig.of_kind(commands.Retire)
    before = dict(rig.workers["w"].running)
    rig.submit(tenant="green")
    retired = [command.sequence_id for command in rig.of_kind(commands.Retire)]
    red = [id for id, running in before.items() if running.admit.max_tokens == 24]
    assert retired == [max(red)]


def test_nobody_gives_way_once_each_tenant_has_its_share():
    rig = flooded()
    quiet = [rig.submit(tenant="blue", max_tokens=24) for _ in range(20)]
    held = sum(rig.is_running(client) for client in quiet)
    assert held == 8, "half of the slots for one of two tenants"
    num_retired = len(rig.of_kind(commands.Retire))
    rig.submit(tenant="blue", max_tokens=24)
    assert len(rig.of_kind(commands.Retire)) == num_retired


def test_weights_are_shares():
    rig = flooded(tenant_weights={"blue": 3.0})  # type: ignore[arg-type]
    quiet = [rig.submit(tenant="blue", max_tokens=24) for _ in range(20)]
    assert sum(rig.is_running(client) for client in quiet) == 12


def test_what_gives_way_goes_on_from_its_tokens_and_what_that_costs_is_bounded():
    rig = flooded(fair_preemption_credit=30, fair_preemption_cost=0.0, fair_reserve=0.0)
    for _ in range(8):
        rig.submit(tenant="blue", max_tokens=24)
    retired = len(rig.of_kind(commands.Retire))
    assert 0 < retired <= 30 // 4, "each has four tokens of prompt to compute again"
    rig.finish(*rig.clients.open())
    assert rig.core.is_idle


def test_a_tenant_that_is_alone_may_fill_everything():
    rig = Rig()
    rig.connect_worker(**BIG)
    for _ in range(20):
        rig.submit(max_tokens=24)
    assert len(rig.workers["w"].running) == 16


def test_no_more_prompts_are_admitted_than_the_next_step_computes():
    rig = Rig()
    worker = rig.connect_worker(num_pages=400, max_sequences=64, max_step_tokens=64)
    clients = [rig.submit(num_prompt=20, max_tokens=24) for _ in range(30)]
    assert len(worker.running) == 4, "80 rows: the first step is full"
    rig.step()
    assert len(worker.running) > 4, "they have their first tokens: others may come"
    rig.finish(*clients)


def test_a_backlog_mends_itself():
    backlog = PrefillBacklog()
    backlog.add(1, 100)
    backlog.add(2, 50)
    backlog.compute(120)
    assert (backlog.num_rows, len(backlog)) == (30, 2)
    backlog.settle(1)
    assert (backlog.num_rows, len(backlog)) == (30, 1)
    backlog.compute(1000)
    assert backlog.num_rows == 0
    backlog.settle(2)
    backlog.settle(2)
    assert (backlog.num_rows, len(backlog)) == (0, 0)


def test_a_tenant_is_forgotten_after_so_many_admissions_of_others():
    recent, red, blue = RecentTenants(3), Account("red", weight=2.0), Account("blue")
    for account in (red, blue, blue):
        recent.note(account)
    assert (len(recent), recent.total_weight) == (2, 3.0)
    recent.note(blue)
    assert red not in recent
    assert recent.total_weight == 1.0


def test_credit_is_earned_by_what_is_computed_and_has_an_end():
    share = FairShare(CoreConfig(fair_preemption_credit=100, fair_preemption_cost=0.5))
    share.spend(100)
    assert not share.can_spend(1)
    share.earn(60)
    assert share.can_spend(30)
    assert not share.can_spend(31)
    share.earn(10_000)
    assert share.can_spend(100)
    assert not share.can_spend(101)


def test_the_service_of_two_tenants_that_both_wait_stays_within_the_stated_bound():
    """One with long prompts and one with short ones and long outputs: counters, not requests, are made equal."""
    rig = Rig(fairness_quantum=16.0, fairness_burst=0.0)
    rig.connect_worker(num_pages=60, max_sequences=4, max_step_tokens=64)
    shapes = {"red": (30, 2), "blue": (3, 20)}
    clients = []
    for _, (tenant, (num_prompt, max_tokens)) in itertools.product(range(40), shapes.items()):
        clients.append(rig.submit(tenant=tenant, num_prompt=num_prompt, max_tokens=max_tokens))
    bound, widest = 2 * max(1.0 * 30, 2.0 * 60 * 4) + 16, 0.0
    while all(any(c.submitted.tenant == tenant and not c.outputs[0] for c in rig.clients.open()) for tenant in shapes):
        red, blue = (served(clients, tenant) for tenant in shapes)
        widest = max(widest, abs(red - blue))
        rig.pass_time(0.01)
        rig.step()
    assert 0 < widest <= bound, widest


def served(clients: list[Client], tenant: str) -> float:
    """By the clients' books: prompts of those that have a token, and tokens twice."""
    own = [client for client in clients if client.submitted.tenant == tenant and client.outputs[0]]
    return sum(len(client.submitted.prompt_ids) + 2.0 * len(client.outputs[0]) for client in own)


# --- first-token deadlines ---


def slow_rig() -> Rig:
    """One sequence at a time, and a history that says that each takes half a second."""
    rig = Rig()
    rig.connect_worker(max_sequences=1)
    for client in [rig.submit(max_tokens=5) for _ in range(6)]:
        while not client.is_over:
            rig.pass_time(0.1)
            rig.step()
    return rig


def test_a_request_that_cannot_have_its_first_token_in_time_is_refused_with_an_estimate():
    rig = slow_rig()
    for _ in range(8):
        rig.submit(max_tokens=5)
    late = rig.submit(max_tokens=5, first_token_deadline_ns=rig.now_ns + 200_000_000)
    assert refusal(late) == ("ResourceExhausted", "SLO_UNATTAINABLE")
    assert late.rejected is not None
    error = late.rejected.error
    assert error.retry_delay_s is not None
    assert error.retry_delay_s > 1.0
    assert "first_token_timeout" in str(error)
    assert float(error.metadata["predictedSeconds"]) > 0.4
    patient = rig.submit(max_tokens=5, first_token_deadline_ns=rig.now_ns + 60_000_000_000)
    assert patient.accepted


def test_one_that_waits_and_can_no_longer_make_it_ends_without_a_prefill():
    rig = Rig()
    rig.connect_worker(max_sequences=1)
    rig.submit(max_tokens=28)
    late = rig.submit(first_token_deadline_ns=rig.now_ns + 1_000_000_000)
    rig.pass_time(1.1)
    assert failure(late) == ("ResourceExhausted", "SLO_UNATTAINABLE")
    assert len(rig.of_kind(commands.Admit)) == 1


def test_the_nearest_deadline_goes_first_among_equals_and_a_much_shorter_request_before_it():
    rig = Rig()
    rig.connect_worker(max_sequences=1, num_pages=100, max_context_tokens=400)
    first = rig.submit(max_tokens=8)
    now_ns = rig.now_ns
    long = rig.submit(num_prompt=9, max_tokens=300, first_token_deadline_ns=now_ns + 30_000_000_000)
    near = rig.submit(max_tokens=4, first_token_deadline_ns=now_ns + 32_000_000_000)
    far = rig.submit(max_tokens=4, first_token_deadline_ns=now_ns + 50_000_000_000)
    rig.finish(first)
    assert rig.is_running(near)
    rig.finish(near)
    assert rig.is_running(long)
    assert not rig.is_running(far)


def test_counters_of_events_that_concern_nobody_change_nothing():
    rig = flooded()
    rig.turn(events.StepReported(worker_id="w", epoch=99, step=1, num_rows=1000))
    assert rig.core.is_idle is False
