"""Workers that die, come back, lie or fall behind: nothing is lost, repeated or reordered for the client."""

import pytest

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.finish import FinishReason
from tests.scheduler.rig import Rig, failure


def report(worker, *emissions: events.Emission, finishes=()) -> events.StepReported:
    return events.StepReported(
        worker_id=worker.info.worker_id, epoch=worker.info.epoch, step=1, emissions=emissions, finishes=finishes
    )


def test_the_sequences_of_a_lost_worker_go_on_elsewhere_with_the_same_tokens():
    rig = Rig()
    rig.connect_worker("w"), rig.connect_worker("v")
    rig.register("poet")
    clients = [rig.submit("poet", max_tokens=15), rig.submit(max_tokens=15), rig.submit("poet", max_tokens=15)]
    rig.step(5)
    assert rig.workers["w"].running
    rig.lose_worker("w")
    rig.finish(*clients)
    assert [client.finishes[0].reason for client in clients] == [FinishReason.MAX_TOKENS] * 3
    assert any(client.finishes[0].usage.num_recomputed_tokens for client in clients)


def test_late_reports_of_a_lost_worker_are_dropped():
    rig = Rig()
    old = rig.connect_worker()
    client = rig.submit(max_tokens=15)
    rig.step(2)
    late = old.must_step()
    rig.lose_worker()
    rig.connect_worker()
    assert rig.turn(late) == []
    rig.finish(client)


def test_a_worker_that_restarts_before_its_loss_was_noticed_starts_from_nothing():
    rig = Rig()
    rig.connect_worker()
    rig.register("poet")
    client = rig.submit("poet", max_tokens=15)
    rig.step(4)
    rig.connect_worker()
    assert len(rig.of_kind(commands.LoadAdapter)) == 2, "the new process holds no adapter"
    rig.finish(client)


def test_repeated_tokens_are_trimmed():
    rig = Rig()
    worker = rig.connect_worker()
    client = rig.submit(max_tokens=15)
    first, second = worker.must_step(), worker.must_step()
    rig.turn(first)
    merged = [first.emissions[0].token_ids[0], second.emissions[0].token_ids[0]]
    sequence_id = first.emissions[0].sequence_id
    rig.turn(report(worker, events.Emission(sequence_id=sequence_id, first_index=0, token_ids=tuple(merged))))
    rig.turn(first, second)
    assert client.outputs[0] == merged


def lies(sequence_id: int) -> dict[str, dict]:
    past_grant = events.Emission(sequence_id=sequence_id, first_index=0, token_ids=tuple(range(7)))
    too_early = events.SequenceFinish(sequence_id=sequence_id, reason=events.WorkerFinish.MAX_TOKENS)
    return {
        "a gap": {"emissions": [events.Emission(sequence_id=sequence_id, first_index=1, token_ids=(1,))]},
        "more than was granted": {"emissions": [past_grant]},
        "an end that is not there": {"emissions": [], "finishes": (too_early,)},
    }


@pytest.mark.parametrize("lie", sorted(lies(1)))
def test_a_report_that_cannot_be_true_fences_the_worker_and_harms_no_request(lie):
    rig = Rig()
    worker = rig.connect_worker()
    client = rig.submit(max_tokens=15)
    told = lies(next(iter(worker.running)))[lie]
    turn = rig.turn(report(worker, *told["emissions"], finishes=told.get("finishes", ())))
    assert [(c.worker_id, c.epoch) for c in turn if isinstance(c, commands.FenceWorker)] == [("w", worker.info.epoch)]
    rig.connect_worker()
    rig.finish(client)
    assert client.finishes[0].reason is FinishReason.MAX_TOKENS


def refuse(worker) -> events.CommandRefused:
    """The worker says no to its only sequence, and does not have it."""
    (sequence_id,) = worker.running
    del worker.running[sequence_id]
    return events.CommandRefused(worker_id="w", epoch=worker.info.epoch, sequence_id=sequence_id, reason="OUT_OF_PAGES")


def test_a_refused_admission_is_tried_again_and_harms_nobody_else():
    rig = Rig()
    worker = rig.connect_worker()
    client = rig.submit(max_tokens=15)
    assert [type(c) for c in rig.turn(refuse(worker))] == [commands.Retire, commands.Admit]
    rig.finish(client)
    assert not rig.of_kind(commands.FenceWorker)


def test_a_worker_that_goes_on_refusing_keeps_other_books_and_is_fenced():
    rig = Rig(max_refusals=3)
    worker = rig.connect_worker()
    client = rig.submit(max_tokens=15)
    for _ in range(2):
        assert not [c for c in rig.turn(refuse(worker)) if isinstance(c, commands.FenceWorker)]
    assert [type(c) for c in rig.turn(refuse(worker))] == [commands.FenceWorker]
    rig.connect_worker()
    rig.finish(client)


def test_a_request_that_the_worker_finds_malformed_ends_alone():
    rig = Rig()
    worker = rig.connect_worker()
    bad, good = rig.submit(max_tokens=15), rig.submit(max_tokens=15)
    sequence_id = next(id for id, r in worker.running.items() if r.admit.prompt_ids == bad.submitted.prompt_ids)
    rig.turn(
        events.CommandRefused(worker_id="w", epoch=worker.info.epoch, sequence_id=sequence_id, reason="FIELD_INVALID")
    )
    assert failure(bad) == ("Internal", "COMMAND_REFUSED")
    rig.finish(good)


def test_output_that_is_not_finite_ends_that_request_alone():
    rig = Rig()
    worker = rig.connect_worker()
    bad, good = rig.submit(max_tokens=15), rig.submit(max_tokens=15)
    sequence_id = next(id for id, r in worker.running.items() if r.admit.prompt_ids == bad.submitted.prompt_ids)
    del worker.running[sequence_id]
    finish = events.SequenceFinish(sequence_id=sequence_id, reason=events.WorkerFinish.NUMERICAL)
    rig.turn(report(worker, finishes=(finish,)))
    assert failure(bad) == ("Internal", "NUMERICAL")
    rig.finish(good)


def test_a_request_under_which_two_workers_die_is_stopped_as_poison_and_the_others_go_on():
    rig = Rig(max_worker_losses=2)
    poison = rig.submit(max_tokens=15)
    for worker_id in ("v", "w"):
        assert not poison.is_over
        rig.connect_worker(worker_id)
        rig.lose_worker(worker_id)
    assert failure(poison) == ("FailedPrecondition", "REQUEST_POISONED")
    good = rig.submit(max_tokens=15)
    rig.connect_worker()
    rig.finish(good)
    assert good.finishes[0].reason is FinishReason.MAX_TOKENS


def test_a_request_that_got_on_under_each_worker_that_died_is_not_the_cause():
    rig = Rig(max_worker_losses=2)
    client = rig.submit(max_tokens=15)
    for _ in range(5):
        rig.connect_worker()
        rig.step()
        rig.lose_worker()
    rig.connect_worker()
    rig.finish(client)
    assert client.finishes[0].reason is FinishReason.MAX_TOKENS


def test_a_sequence_whose_last_token_came_before_the_loss_is_complete():
    rig = Rig()
    worker = rig.connect_worker()
    client = rig.submit(max_tokens=2)
    rig.step()
    last = worker.must_step()
    rig.turn(report(worker, *last.emissions))
    rig.lose_worker()
    assert client.finishes[0].reason is FinishReason.MAX_TOKENS
    assert len(client.outputs[0]) == 2


def test_requests_that_fit_only_the_lost_worker_wait_for_it_and_not_for_ever():
    rig = Rig(no_worker_grace_ns=3_000_000_000)
    rig.connect_worker("big", num_pages=40), rig.connect_worker("small", num_pages=4)
    waits, dies = rig.submit(num_prompt=20, max_tokens=20), rig.submit(num_prompt=20, max_tokens=20)
    rig.lose_worker("big")
    rig.pass_time(2)
    assert not waits.is_over
    rig.connect_worker("big", num_pages=12)
    rig.step(3)
    rig.lose_worker("big")
    rig.pass_time(3)
    assert failure(waits) == failure(dies) == ("Unavailable", "NO_WORKERS")


def test_load_spreads_over_workers_and_adapters_stay_where_they_are():
    rig = Rig()
    rig.connect_worker("w"), rig.connect_worker("v")
    rig.register("poet")
    first = rig.submit("poet", max_tokens=2)
    rig.finish(first)
    for _ in range(2):
        rig.submit("poet", max_tokens=8)
    for _ in range(2):
        rig.submit(max_tokens=8)
    homes = {load.worker_id for load in rig.of_kind(commands.LoadAdapter)}
    assert len(homes) == 1, "loaded where it was not needed"
    assert {worker_id for worker_id, w in rig.workers.items() if w.running} == {"w", "v"}


def test_the_budget_of_a_step_is_sent_where_the_operator_lowers_it():
    rig = Rig(max_step_tokens=16)
    rig.connect_worker("w", max_step_tokens=64), rig.connect_worker("v", max_step_tokens=8)
    assert rig.of_kind(commands.SetBudget) == [commands.SetBudget(worker_id="w", epoch=1, max_step_tokens=16)]


def test_steps_that_mix_adapters_are_counted():
    rig = Rig()
    rig.connect_worker()
    rig.register("a"), rig.register("b")
    rig.submit("a", max_tokens=2), rig.submit("b", max_tokens=3), rig.submit(max_tokens=5)
    rig.step(5)
    counters = rig.core.statistics().workers[0].counters
    assert (counters.num_steps, counters.num_mixed_steps, counters.max_adapters_in_step) == (5, 3, 2)
    assert counters.num_output_tokens == 10
