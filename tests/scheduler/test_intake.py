"""What is refused at once, with which error, and that it leaves no trace."""

import pytest

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.sampling import Sampling
from loraplex_scheduler.core.seed import sequence_seed
from tests.scheduler.rig import Rig, failure, refusal


def test_a_request_is_accepted_then_started_with_what_it_resolved_to():
    rig = Rig()
    rig.connect_worker()
    digest = rig.register("poet")
    client = rig.submit(AdapterPart(name="poet", weight=0.5), sampling=Sampling(seed=9))
    assert client.accepted.request_id == client.submitted.request_id
    assert [(a.name, a.number, a.digest, a.weight) for a in client.started.adapters] == [("poet", 1, digest, 0.5)]
    assert client.started.seed == 9


@pytest.mark.parametrize("version", ["", "1", "red-poet-1"])
def test_an_adapter_of_another_tenant_reads_as_one_that_does_not_exist(version):
    rig = Rig()
    rig.connect_worker()
    rig.register("poet", tenant="red")
    foreign = rig.submit(AdapterPart(name="poet", version=version), tenant="blue")
    unknown = rig.submit(AdapterPart(name="poets", version=version), tenant="red")
    assert refusal(foreign) == refusal(unknown) == ("NotFound", "ADAPTER_NOT_FOUND")
    assert foreign.rejected.error.message.replace("poet", "X") == unknown.rejected.error.message.replace("poets", "X")
    assert not rig.of_kind(commands.Admit), "it ran on something else"


@pytest.mark.parametrize("version", ["2", "0", "01234", "f" * 64])
def test_an_unknown_version_is_not_found_and_never_another_one(version):
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    client = rig.submit(AdapterPart(name="poet", version=version))
    assert refusal(client) == ("NotFound", "ADAPTER_NOT_FOUND")
    assert not rig.of_kind(commands.Admit)


def test_a_version_is_found_by_number_and_by_digest_and_the_newest_is_the_default():
    rig = Rig()
    rig.connect_worker()
    old, new = rig.register("poet", number=1), rig.register("poet", number=2)
    chosen = [rig.submit(AdapterPart(name="poet", version=v)).started.adapters[0].digest for v in ("", "1", "2", old)]
    assert chosen == [new, old, new, old]


def test_one_version_twice_in_a_composition_is_refused():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    client = rig.submit("poet", AdapterPart(name="poet", version="1"))
    assert refusal(client) == ("InvalidArgument", "FIELD_INVALID")


def test_a_full_queue_refuses_with_a_time_to_come_back():
    rig = Rig(max_queued_requests=2)
    rig.connect_worker(max_sequences=1)
    clients = [rig.submit() for _ in range(4)]
    assert [client.rejected is None for client in clients] == [True, True, True, False]
    assert refusal(clients[3]) == ("ResourceExhausted", "QUEUE_FULL")
    assert clients[3].rejected.error.retry_delay_s == 1.0
    assert [client.accepted.queue_position for client in clients[:3]] == [0, 0, 1]


def test_a_tenant_over_its_quota_is_refused_and_the_others_are_not():
    rig = Rig(max_inflight_per_tenant=2)
    rig.connect_worker()
    greedy = [rig.submit(tenant="red") for _ in range(3)]
    assert refusal(greedy[2]) == ("ResourceExhausted", "TENANT_QUOTA")
    assert rig.submit(tenant="blue").accepted
    rig.finish(greedy[0])
    assert rig.submit(tenant="red").accepted


def test_a_running_request_id_is_taken_for_its_tenant_only_and_only_while_it_runs():
    rig = Rig()
    rig.connect_worker()
    first = rig.submit(request_id="same")
    assert refusal(rig.submit(request_id="same")) == ("AlreadyExists", "REQUEST_ID_REUSED")
    assert rig.submit(request_id="same", tenant="blue").accepted
    rig.finish(first)
    assert rig.submit(request_id="same").accepted


def test_without_a_worker_requests_wait_for_the_grace_and_are_then_told():
    rig = Rig(no_worker_grace_ns=3_000_000_000)
    early = rig.submit()
    rig.pass_time(2.9)
    assert not early.is_over
    rig.pass_time(0.2)
    assert failure(early) == ("Unavailable", "NO_WORKERS")
    late = rig.submit()
    assert refusal(late) == ("Unavailable", "NO_WORKERS")
    assert late.rejected.error.retry_delay_s == 3.0


def test_a_request_that_came_before_the_first_worker_runs_on_it():
    rig = Rig()
    client = rig.submit(max_tokens=None, num_prompt=10)
    rig.connect_worker(max_context_tokens=16)
    rig.finish(client)
    assert client.finishes[0].reason is FinishReason.CONTEXT_LIMIT
    assert len(client.outputs[0]) == 6


def test_a_request_that_came_before_a_worker_that_is_too_small_is_told_why():
    rig = Rig()
    client = rig.submit(num_prompt=30)
    rig.connect_worker(max_context_tokens=16)
    assert failure(client) == ("InvalidArgument", "PROMPT_TOO_LONG")


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers():
    rig = Rig()
    rig.connect_worker(max_context_tokens=16)
    client = rig.submit(num_prompt=16)
    assert refusal(client) == ("InvalidArgument", "PROMPT_TOO_LONG")
    assert client.rejected.error.metadata == {"promptTokens": "16", "maxPromptTokens": "15"}
    assert rig.submit(num_prompt=15, max_tokens=1).accepted


def test_max_tokens_over_the_context_is_refused_and_a_missing_one_is_cut_to_it():
    rig = Rig()
    rig.connect_worker(max_context_tokens=16)
    assert refusal(rig.submit(num_prompt=10, max_tokens=7)) == ("InvalidArgument", "CONTEXT_EXCEEDED")
    fits, open_ended = rig.submit(num_prompt=10, max_tokens=6), rig.submit(num_prompt=10, max_tokens=None)
    rig.finish(fits, open_ended)
    assert fits.finishes[0].reason is FinishReason.MAX_TOKENS
    assert open_ended.finishes[0].reason is FinishReason.CONTEXT_LIMIT
    assert len(fits.outputs[0]) == len(open_ended.outputs[0]) == 6


def test_what_the_whole_pool_cannot_hold_is_refused_with_the_pages():
    rig = Rig()
    rig.connect_worker(num_pages=5, page_size=4, max_context_tokens=48)
    rig.register("poet", pages=3)
    assert rig.submit(num_prompt=4, max_tokens=16).accepted
    assert refusal(rig.submit(num_prompt=4, max_tokens=17)) == ("FailedPrecondition", "KV_CAPACITY_EXCEEDED")
    with_adapter = rig.submit("poet", num_prompt=4, max_tokens=5)
    assert refusal(with_adapter) == ("FailedPrecondition", "KV_CAPACITY_EXCEEDED")
    assert with_adapter.rejected.error.metadata == {"pages": "6", "adapterPages": "3", "maxPages": "5"}


def test_more_adapters_than_a_step_may_have_are_refused():
    rig = Rig(max_adapters_per_step=1)
    rig.connect_worker()
    rig.register("a"), rig.register("b")
    assert refusal(rig.submit("a", "b")) == ("FailedPrecondition", "ADAPTERS_PER_STEP_EXCEEDED")
    assert rig.submit("a").accepted


def test_a_deadline_in_the_past_is_refused():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(deadline_ns=rig.now_ns)
    assert refusal(client) == ("DeadlineExceeded", "DEADLINE")


def test_each_of_n_sequences_has_its_own_seed_and_the_first_has_the_request_s():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(num_sequences=3, sampling=Sampling(seed=5, prompt_logprobs=1))
    seeds = [admit.sampling.seed for admit in rig.of_kind(commands.Admit)]
    assert seeds == [sequence_seed(5, index) for index in range(3)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert [admit.sampling.prompt_logprobs for admit in rig.of_kind(commands.Admit)] == [1, None, None]
    rig.finish(client)
    assert len({tuple(output) for output in client.outputs}) == 3


def test_a_missing_seed_is_derived_echoed_and_the_same_for_the_same_salt():
    seeds = []
    for salt in (1, 1, 2):
        rig = Rig(seed_salt=salt)
        rig.connect_worker()
        clients = [rig.submit(sampling=Sampling()) for _ in range(2)]
        assert [c.started.seed for c in clients] == [a.sampling.seed for a in rig.of_kind(commands.Admit)]
        seeds.append([client.started.seed for client in clients])
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] != seeds[0][1]


def test_a_rejected_request_leaves_no_trace():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    rig.submit("poet", num_prompt=100)
    rig.submit("unknown")
    statistics = rig.core.statistics()
    assert statistics.num_leases == statistics.num_queued_sequences == 0
    assert not rig.of_kind(commands.LoadAdapter), "an adapter was loaded for nobody"


def test_a_submission_of_a_frontend_that_is_gone_is_dropped():
    rig = Rig()
    rig.connect_worker()
    turn = rig.turn(events.Submitted(key=events.RequestKey("nobody", 1), tenant="red", request_id="x", prompt_ids=(1,)))
    assert turn == []


def test_a_second_submission_under_a_running_handle_is_dropped_and_harms_nobody():
    rig = Rig()
    rig.connect_worker()
    client = rig.submit(max_tokens=5)
    assert rig.turn(client.submitted) == []
    rig.finish(client)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="grant_low_tokens=64"):
        CoreConfig(grant_low_tokens=64, grant_tokens=64)
