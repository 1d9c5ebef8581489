"""Sequences start behind what others computed, with the tokens they would have had; nobody else's pages are read."""

from typing import Any

import pytest
from tests.worker.engine.fake_decoder import FakeDecoder, fake_weights, small_engine
from tests.worker.engine.sequence_run import EngineRun, SequenceRun, admit, run_alone, using

from loraplex_worker.engine.command import AdapterWeight, AttachAdapter, EvictAdapter, Reset, Retire, SetBudget
from loraplex_worker.engine.refusal import CommandRefused
from loraplex_worker.engine.report import Finish, PageCounts

RED: dict[str, Any] = {"prefix_namespace": b"red"}
BLUE: dict[str, Any] = {"prefix_namespace": b"blue"}
LONG = tuple(range(1, 22))
"""Five whole pages of four, and one token."""


def engine_run(model: FakeDecoder | None = None, **changes: int) -> EngineRun:
    run = EngineRun(small_engine(model, **changes))
    for digest, fingerprint in (("a", 17), ("b", 23)):
        run.engine.apply(AttachAdapter(digest=digest, weights=fake_weights(fingerprint), num_pages=1))
    return run


def finish(run: EngineRun, sequence_id: int, prompt: tuple[int, ...] = LONG, **changes: Any) -> int:
    """Run one sequence to its end; returns how many tokens it found."""
    run.engine.apply(admit(sequence_id, prompt, **changes))
    run.until_idle()
    return run.hits.get(sequence_id, 0)


def alone(prompt: tuple[int, ...] = LONG, **changes: Any) -> SequenceRun:
    """Without any prefix to find."""
    return run_alone(engine_run().engine, admit(1, prompt, **changes | {"prefix_namespace": b""}))


@pytest.mark.parametrize(
    "adapters", [(), using("a"), (*using("a"), *using("b", weight=0.25))], ids=["base", "one", "pair"]
)
def test_a_second_sequence_computes_only_what_is_new_and_gives_the_same_tokens(adapters: tuple[AdapterWeight, ...]):
    model = FakeDecoder()
    run = engine_run(model, max_step_tokens=64)
    assert finish(run, 1, adapters=adapters, **RED) == 0
    num_before = len(model.batches)
    assert finish(run, 2, adapters=adapters, **RED) == 20
    assert len(model.batches[num_before].token_ids) == 1
    assert finish(run, 3, (*LONG[:9], 30, 31, 32), adapters=adapters, **RED) == 8
    assert run.sequences[1] == run.sequences[2] == alone(adapters=adapters)
    assert run.sequences[3] == alone((*LONG[:9], 30, 31, 32), adapters=adapters)


def test_a_hit_is_told_once_in_the_report_of_the_first_rows():
    run = engine_run()
    finish(run, 1, **RED)
    run.reports.clear()
    finish(run, 2, (*LONG, *range(20)), max_tokens=3, **RED)
    hits = [[(hit.sequence_id, hit.num_tokens) for hit in report.prefix_hits] for report in run.reports]
    assert hits == [[(2, 20)], *[[]] * (len(hits) - 1)]
    assert len(hits) > 3


def test_the_last_token_is_computed_even_where_every_page_is_there():
    run = engine_run()
    finish(run, 1, LONG[:16], **RED)
    assert finish(run, 2, LONG[:16], **RED) == 12
    assert finish(run, 3, LONG[:17], **RED) == 16
    assert run.sequences[2] == alone(LONG[:16])


def test_the_output_of_a_sequence_can_be_found_by_the_next_turn_of_the_conversation():
    run = engine_run()
    finish(run, 1, LONG, max_tokens=12, **RED)
    answer = tuple(run.sequences[1].tokens)
    assert finish(run, 2, (*LONG, *answer, 5, 6, 7), **RED) == 32
    assert run.sequences[2] == alone((*LONG, *answer, 5, 6, 7))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (RED, BLUE),
        (RED, {}),
        ({}, {}),
        ({**RED, "adapters": using("a")}, RED),
        (RED, {**RED, "adapters": using("a")}),
        ({**RED, "adapters": using("a")}, {**RED, "adapters": using("b")}),
        ({**RED, "adapters": using("a")}, {**BLUE, "adapters": using("a")}),
        ({**RED, "adapters": using("a")}, {**RED, "adapters": using("a", weight=0.5)}),
        ({**RED, "adapters": using("a")}, {**RED, "adapters": using("a", weight=1.0 + 2**-52)}),
        ({**RED, "adapters": using("a")}, {**RED, "adapters": using("a", "b")}),
        ({**RED, "adapters": using("a", "b")}, {**RED, "adapters": using("b", "a")}),
    ],
)
def test_who_differs_in_tenant_adapters_or_weights_never_shares(first: dict[str, Any], second: dict[str, Any]):
    run = engine_run()
    finish(run, 1, **first)
    assert finish(run, 2, **second) == 0
    assert run.sequences[2] == alone(**second)


def test_a_reloaded_adapter_finds_nothing_of_its_former_version_and_an_evicted_one_its_own():
    run = engine_run()
    finish(run, 1, adapters=using("a"), **RED)
    run.engine.apply(EvictAdapter(digest="a"))
    run.engine.apply(AttachAdapter(digest="a2", weights=fake_weights(99), num_pages=1))
    assert finish(run, 2, adapters=using("a2"), **RED) == 0
    run.engine.apply(AttachAdapter(digest="a", weights=fake_weights(17), num_pages=1))
    assert finish(run, 3, adapters=using("a"), **RED) == 20
    assert run.sequences[3] == run.sequences[1] != run.sequences[2]


def test_a_running_sequence_is_shared_and_may_end_before_the_one_that_shares_it():
    run = engine_run()
    run.engine.apply(admit(1, LONG, max_tokens=30, **RED))
    for _ in range(3):
        run.step()
    run.engine.apply(admit(2, LONG, max_tokens=20, **RED))
    run.step()
    assert run.hits == {2: 20}
    run.engine.apply(Retire(sequence_id=1))
    # Everything that is not held is given to somebody else, and poisoned on the way.
    counts = run.engine.page_counts()
    run.engine.apply(AttachAdapter(digest="c", weights=fake_weights(1), num_pages=counts.free))
    run.until_idle()
    assert run.sequences[2] == alone(max_tokens=20)


def test_only_pages_that_are_complete_can_be_found_while_a_prompt_is_computed_in_chunks():
    run = engine_run(max_step_tokens=6)
    run.engine.apply(admit(1, LONG, **RED))
    run.step()
    run.engine.apply(Retire(sequence_id=1))
    assert finish(run, 2, LONG, **RED) == 4
    assert run.sequences[2] == alone()


def test_a_sequence_that_is_cancelled_before_its_first_row_leaves_nothing():
    run = engine_run()
    run.engine.apply(admit(1, LONG, **RED))
    run.engine.apply(Retire(sequence_id=1))
    assert finish(run, 2, **RED) == 0


@pytest.mark.parametrize("num_before", [1, 4, 13])
def test_a_preempted_sequence_finds_its_prompt_and_its_output_again(num_before: int):
    run = engine_run()
    run.engine.apply(admit(1, LONG, max_tokens=14, grant_tokens=num_before, temperature=1.0, seed=5, **RED))
    run.until_idle()
    run.engine.apply(Retire(sequence_id=1))
    emitted = tuple(run.sequences[1].tokens)
    # The last token was never computed, and whole pages alone are kept.
    num_kept = (len(LONG) + num_before - 1) // 4 * 4
    assert finish(run, 1, emitted_ids=emitted, max_tokens=14, temperature=1.0, seed=5, **RED) == num_kept
    assert run.sequences[1] == alone(max_tokens=14, temperature=1.0, seed=5)


def test_sequences_of_one_prompt_that_come_together_cost_one_prefill():
    model = FakeDecoder()
    run = engine_run(model, max_step_tokens=64)
    for sequence_id in range(1, 5):
        run.engine.apply(admit(sequence_id, LONG, temperature=1.0, seed=sequence_id, **RED))
    run.until_idle()
    assert [report.num_prefill_rows for report in run.reports[:2]] == [21, 3]
    assert run.hits == {2: 20, 3: 20, 4: 20}
    for sequence_id in range(1, 5):
        assert run.sequences[sequence_id] == alone(temperature=1.0, seed=sequence_id)


def test_nobody_waits_for_a_beginning_that_spares_less_than_half():
    run = engine_run(max_step_tokens=64)
    run.engine.apply(admit(1, LONG, **RED))
    run.engine.apply(admit(2, (*LONG[:8], *range(30, 39)), **RED))
    run.engine.apply(admit(3, (*LONG[:12], *range(30, 39)), **RED))
    report = run.step()
    assert report is not None
    assert report.num_prefill_rows == 21 + 17
    run.until_idle()
    assert run.hits == {3: 12}


def test_who_waits_goes_on_when_the_one_ahead_is_cancelled():
    run = engine_run(max_step_tokens=6)
    run.engine.apply(admit(1, LONG, **RED))
    run.engine.apply(admit(2, LONG, **RED))
    run.step()
    run.engine.apply(Retire(sequence_id=1))
    run.until_idle()
    assert run.hits == {2: 4}
    assert run.sequences[2] == alone()


def test_resting_pages_are_free_in_the_report_and_taken_when_the_pool_needs_them():
    run = engine_run(num_pages=12)
    finish(run, 1, **RED)
    assert run.engine.page_counts() == PageCounts(free=10, kv=0, adapter=2, total=12)
    # All ten at once: seven of them rest.
    run.engine.apply(AttachAdapter(digest="c", weights=fake_weights(1), num_pages=10))
    assert run.engine.page_counts() == PageCounts(free=0, kv=0, adapter=12, total=12)
    run.engine.apply(EvictAdapter(digest="c"))
    assert finish(run, 2, **RED) == 0
    assert run.sequences[2] == run.sequences[1]


def test_a_sequence_is_charged_in_full_for_pages_that_it_shares():
    run = engine_run(num_pages=18)
    run.engine.apply(admit(1, LONG, max_tokens=8, **RED))
    run.step()
    run.step()
    run.engine.apply(admit(2, LONG, max_tokens=8, **RED))
    assert run.engine.page_counts() == PageCounts(free=0, kv=16, adapter=2, total=18)
    with pytest.raises(CommandRefused, match="1 pages wanted, 0 free"):
        run.engine.apply(admit(3, (1,), max_tokens=1, **RED))
    run.until_idle()
    assert run.sequences[2] == run.sequences[1]


def test_a_pool_full_of_resting_pages_keeps_those_that_the_newcomer_can_use():
    run = engine_run(num_pages=10)
    finish(run, 1, LONG, max_tokens=8, **RED)
    assert finish(run, 2, LONG, max_tokens=11, **RED) == 20
    assert run.sequences[2] == alone(max_tokens=11)


def test_prompt_logprobs_take_every_row_and_leave_them_for_others():
    run = engine_run()
    finish(run, 1, **RED)
    assert finish(run, 2, prompt_logprobs=2, **RED) == 0
    cold = engine_run()
    assert finish(cold, 2, prompt_logprobs=2, **RED) == 0
    assert run.prompts == cold.prompts
    assert finish(cold, 3, **RED) == 20


def test_a_sequence_that_ends_for_bad_numbers_leaves_nothing():
    model = FakeDecoder(poison=[39])
    run = engine_run(model, max_step_tokens=6)
    broken = (*LONG[:20], 39)
    assert finish(run, 1, broken, **RED) == 0
    assert run.sequences[1].finish is Finish.NUMERICAL
    assert finish(run, 2, LONG, **RED) == 0
    assert run.sequences[2] == alone()


def test_a_page_with_a_value_that_is_not_finite_is_never_found():
    model = FakeDecoder()
    run = engine_run(model, max_step_tokens=6)
    run.engine.apply(admit(1, LONG, **RED))
    run.step()
    # The second page is half written: spoil what is in it before the rest comes.
    (sequence,) = run.engine._standing.in_admission_order()
    page = sequence.page_ids[1]
    run.engine._kv.storage[page].view(-1)[1] = float("inf")
    run.step()
    run.engine.apply(Retire(sequence_id=1))
    assert finish(run, 2, **RED) == 4
    assert run.sequences[2] == alone()


def test_a_reset_leaves_the_pages_to_the_next_term():
    run = engine_run()
    finish(run, 1, **RED)
    run.engine.apply(Reset())
    assert finish(run, 2, **RED) == 20


def test_an_engine_without_a_prefix_cache_ignores_namespaces():
    run = engine_run(has_prefix_cache=False)
    finish(run, 1, **RED)
    assert finish(run, 2, **RED) == 0


def test_many_prompts_through_a_small_pool_never_run_out_of_pages():
    run = engine_run(num_pages=14)
    for number in range(300):
        prompt = tuple((number // 2 * 7 + place * (number // 2 % 3)) % 40 for place in range(20))
        run.engine.apply(admit(number, prompt, max_tokens=1, **RED))
        run.step()
        run.step()
    assert run.engine.page_counts().free == 12
    assert len(run.hits) >= 150


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_a_prompt_is_computed_even_while_decoding_takes_the_whole_budget(budget: int):
    run = engine_run(num_pages=128)
    for sequence_id in range(1, 9):
        run.engine.apply(admit(sequence_id, (sequence_id,), max_tokens=48))
    run.step()
    run.engine.apply(SetBudget(max_step_tokens=budget))
    run.engine.apply(admit(9, LONG, max_tokens=1))
    for _ in range(len(LONG)):
        report = run.step()
        assert report is not None
        assert (report.num_decode_rows, report.num_prefill_rows) == (8, 1)
    assert run.sequences[9].finish is Finish.MAX_TOKENS


def test_prefill_gets_an_eighth_of_the_budget_whatever_decodes():
    run = engine_run(num_pages=256, max_step_tokens=40)
    for sequence_id in range(1, 39):
        run.engine.apply(admit(sequence_id, (sequence_id,), max_tokens=20))
    run.step()
    run.engine.apply(admit(39, LONG, max_tokens=1))
    report = run.step()
    assert report is not None
    assert (report.num_decode_rows, report.num_prefill_rows) == (38, 5)
