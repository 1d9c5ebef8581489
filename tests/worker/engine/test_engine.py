import pytest
import torch
from tests.worker.engine.fake_decoder import FakeDecoder, fake_weights, small_engine
from tests.worker.engine.sequence_run import EngineRun, SequenceRun, admit, run_alone, using

from loraplex_worker.engine.command import AttachAdapter, EvictAdapter, Grant, Retire, SetBudget
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.engine.report import Finish, PageCounts


def attach(engine: Engine, digest: str, fingerprint: int, num_pages: int = 2) -> None:
    engine.apply(AttachAdapter(digest=digest, weights=fake_weights(fingerprint), num_pages=num_pages))


def refusal(engine: Engine, command: object) -> CommandRefused:
    counts = engine.page_counts()
    with pytest.raises(CommandRefused) as caught:
        engine.apply(command)  # type: ignore[arg-type]
    engine.check()
    assert engine.page_counts() == counts, "a refused command changed the ledger"
    return caught.value


def test_an_idle_engine_has_nothing_to_do():
    engine = small_engine()
    assert not engine.has_work()
    assert engine.step() is None


def test_a_sequence_ends_at_max_tokens_and_its_pages_are_free():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, max_tokens=5))
    run.until_idle()
    assert run.sequences[1].finish is Finish.MAX_TOKENS
    assert len(run.sequences[1].tokens) == 5
    assert run.engine.page_counts() == PageCounts(free=64, kv=0, adapter=0, total=64)


def test_many_sequences_give_what_each_gives_alone():
    run = EngineRun(small_engine(num_pages=256))
    attach(run.engine, "a", 17)
    attach(run.engine, "b", 23)
    commands = [
        admit(1, (5,), max_tokens=9),
        admit(2, tuple(range(20)), adapters=using("a"), temperature=0.8, seed=5),
        admit(3, (5, 6, 7, 8), adapters=using("b")),
        admit(4, (5, 6, 7, 8), adapters=using("a", "b", weight=0.5), temperature=1.0, top_p=0.9, seed=6),
        admit(5, (5, 6, 7, 8)),
        admit(6, tuple(range(30, 0, -1)), adapters=using("a", weight=0.25)),
    ]
    for command in commands:
        run.engine.apply(command)
    run.until_idle()
    assert max(len(report.adapter_digests) for report in run.reports) == 2
    for command in commands:
        alone = small_engine()
        attach(alone, "a", 17)
        attach(alone, "b", 23)
        assert run.sequences[command.sequence_id].tokens == run_alone(alone, command).tokens
    outputs = {tuple(run.sequences[sequence_id].tokens) for sequence_id in (3, 4, 5)}
    assert len(outputs) == 3, "the adapter makes no difference"


def test_a_step_has_decode_rows_first_and_then_prefill_up_to_the_budget_in_order_of_admission():
    model = FakeDecoder()
    run = EngineRun(small_engine(model, max_step_tokens=8))
    run.engine.apply(admit(1, (1, 2)))
    run.step()
    run.engine.apply(admit(2, tuple(range(10))))
    run.engine.apply(admit(3, tuple(range(5))))
    report = run.step()
    assert report is not None
    assert (report.num_rows, report.num_decode_rows, report.num_prefill_rows) == (8, 1, 7)
    assert [emission.sequence_id for emission in report.emissions] == [1]
    report = run.step()
    assert report is not None
    # Sequence 2 takes its last 3 rows, sequence 3 the 4 that are left.
    assert sorted((span.num_rows, span.context_len) for span in model.batches[-1].spans) == [(1, 4), (3, 10), (4, 4)]
    assert [emission.sequence_id for emission in report.emissions] == [1, 2]


def test_a_smaller_budget_makes_smaller_steps():
    run = EngineRun(small_engine())
    run.engine.apply(SetBudget(max_step_tokens=3))
    run.engine.apply(admit(1, tuple(range(8)), max_tokens=1))
    run.until_idle()
    assert [report.num_rows for report in run.reports] == [3, 3, 2]
    assert refusal(run.engine, SetBudget(max_step_tokens=0)).reason is RefusalReason.FIELD_INVALID


def test_the_budget_does_not_change_the_output():
    alone = [run_alone(small_engine(max_step_tokens=budget), admit(1, tuple(range(20)))) for budget in (1, 3, 7, 64)]
    assert all(run.tokens == alone[0].tokens for run in alone)


def test_rows_of_one_adapter_are_neighbours():
    model = FakeDecoder()
    run = EngineRun(small_engine(model))
    attach(run.engine, "a", 3)
    attach(run.engine, "b", 5)
    for sequence_id in range(6):
        run.engine.apply(admit(sequence_id, adapters=using("ab"[sequence_id % 2])))
    for _ in range(3):
        run.step()
    lora = model.batches[-1].lora
    assert lora is not None
    assert [segment.index for segment in lora.segments] == [None, None]
    assert [segment.num_rows for segment in lora.segments] == [3, 3]


def test_a_batch_without_adapters_takes_the_base_path():
    model = FakeDecoder()
    run = EngineRun(small_engine(model))
    attach(run.engine, "a", 3)
    run.engine.apply(admit(1, max_tokens=2, adapters=using("a")))
    run.engine.apply(admit(2, max_tokens=4))
    run.until_idle()
    assert [batch.lora is None for batch in model.batches] == [False, False, True, True]
    assert [report.adapter_digests for report in run.reports] == [{"a"}, {"a"}, frozenset(), frozenset()]


def test_a_sequence_rests_at_the_end_of_its_grant_and_goes_on_with_the_next():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, max_tokens=8, grant_tokens=3))
    assert run.engine.page_counts().kv == 2
    run.until_idle()
    assert len(run.sequences[1].tokens) == 3
    assert run.sequences[1].finish is None
    assert run.engine.page_counts().kv == 2
    run.engine.apply(Grant(sequence_id=1, grant_tokens=6))
    assert run.engine.page_counts().kv == 3
    run.until_idle()
    assert len(run.sequences[1].tokens) == 6
    run.engine.apply(Grant(sequence_id=1, grant_tokens=8))
    run.until_idle()
    assert run.sequences[1].finish is Finish.MAX_TOKENS
    assert run.sequences[1].tokens == run_alone(small_engine(), admit(1, max_tokens=8)).tokens


def test_a_grant_never_lowers_and_counts_once():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, max_tokens=8, grant_tokens=6))
    for grant_tokens in (6, 2, 6):
        run.engine.apply(Grant(sequence_id=1, grant_tokens=grant_tokens))
    assert run.engine.page_counts().kv == 3
    run.until_idle()
    assert len(run.sequences[1].tokens) == 6


def test_the_weight_of_an_adapter_makes_a_difference():
    engine = small_engine()
    attach(engine, "a", 17)
    outputs = {
        tuple(run_alone(engine, admit(1, adapters=using("a", weight=weight))).tokens) for weight in (0.0, 0.5, 1.0)
    }
    assert len(outputs) == 3
    assert tuple(run_alone(engine, admit(1)).tokens) in outputs, "weight 0 is not the base model"


def test_a_grant_of_many_pages_keeps_what_is_in_the_first():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, max_tokens=30, grant_tokens=2))
    run.until_idle()
    run.engine.apply(Grant(sequence_id=1, grant_tokens=30))
    run.until_idle()
    assert run.sequences[1].tokens == run_alone(small_engine(), admit(1, max_tokens=30)).tokens


def test_a_grant_that_finds_no_pages_is_refused_and_the_sequence_stays():
    run = EngineRun(small_engine(num_pages=2))
    run.engine.apply(admit(1, max_tokens=20, grant_tokens=3))
    error = refusal(run.engine, Grant(sequence_id=1, grant_tokens=20))
    assert (error.reason, error.sequence_id) == (RefusalReason.OUT_OF_PAGES, 1)
    run.until_idle()
    assert len(run.sequences[1].tokens) == 3


def test_commands_about_sequences_that_are_gone_are_ignored():
    engine = small_engine()
    engine.apply(Grant(sequence_id=9, grant_tokens=4))
    engine.apply(Retire(sequence_id=9))
    engine.apply(EvictAdapter(digest="gone"))
    engine.check()


def test_retire_frees_the_pages_at_once_and_nothing_more_is_emitted():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, tuple(range(30)), max_tokens=20))
    run.step()
    run.engine.apply(Retire(sequence_id=1))
    assert run.engine.page_counts().free == 64
    assert run.step() is None
    assert not run.sequences


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "seed": 99},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.7, "temperature": 0.9, "top_k": 7, "seed": 3},
    ],
)
def test_a_preempted_sequence_goes_on_with_the_tokens_it_would_have_had(changes: dict[str, float]):
    whole = run_alone(small_engine(), admit(1, (4, 5, 6, 7, 8), max_tokens=14, **changes))
    for num_before in (1, 4, 13):
        run = EngineRun(small_engine())
        run.engine.apply(admit(1, (4, 5, 6, 7, 8), max_tokens=14, grant_tokens=num_before, **changes))
        run.until_idle()
        run.engine.apply(Retire(sequence_id=1))
        emitted = tuple(run.sequences[1].tokens)
        assert len(emitted) == num_before
        run.engine.apply(admit(1, (4, 5, 6, 7, 8), max_tokens=14, emitted_ids=emitted, **changes))
        run.until_idle()
        assert run.sequences[1] == whole


def test_minimum_length_counts_emitted_tokens():
    whole = run_alone(small_engine(), admit(1, max_tokens=6)).tokens
    run = EngineRun(small_engine(), sequences={1: SequenceRun(tokens=whole[:4])})
    run.engine.apply(admit(1, emitted_ids=tuple(whole[:4]), min_tokens=4, max_tokens=6, stop_token_ids=(whole[4],)))
    run.until_idle()
    assert run.sequences[1] == SequenceRun(tokens=whole[:4], finish=Finish.STOP_TOKEN, stop_token_id=whole[4])


def test_a_stop_token_ends_the_sequence_and_is_named_but_not_emitted():
    whole = run_alone(small_engine(), admit(1, max_tokens=12))
    stop_id = whole.tokens[5]
    cut = whole.tokens.index(stop_id)
    run = run_alone(small_engine(), admit(1, max_tokens=12, stop_token_ids=(stop_id,)))
    assert (run.finish, run.stop_token_id) == (Finish.STOP_TOKEN, stop_id)
    assert run.tokens == whole.tokens[:cut]


def test_a_stop_token_is_not_sampled_before_the_minimum_length():
    whole = run_alone(small_engine(), admit(1, max_tokens=12))
    run = run_alone(small_engine(), admit(1, max_tokens=12, stop_token_ids=(whole.tokens[0],), min_tokens=3))
    assert len(run.tokens) >= 3
    assert whole.tokens[0] not in run.tokens


def test_prompt_and_output_end_at_the_context_limit():
    run = run_alone(small_engine(max_context_tokens=16), admit(1, tuple(range(10)), max_tokens=30, grant_tokens=30))
    assert run.finish is Finish.CONTEXT_LIMIT
    assert len(run.tokens) == 6


def test_at_the_context_limit_max_tokens_is_the_reason_where_both_hold():
    run = run_alone(small_engine(max_context_tokens=16), admit(1, tuple(range(10)), max_tokens=6))
    assert run.finish is Finish.MAX_TOKENS


def test_logits_that_are_not_finite_end_only_their_own_sequence():
    run = EngineRun(small_engine(FakeDecoder(poison=[39])))
    run.engine.apply(admit(1, (1, 2, 39), max_tokens=5))
    run.engine.apply(admit(2, (1, 2, 3), max_tokens=5, banned_token_ids=(39,)))
    run.engine.apply(admit(3, (1, 39), max_tokens=5, temperature=1.0, top_p=0.5))
    run.until_idle()
    assert [run.sequences[sequence_id].finish for sequence_id in (1, 2, 3)] == [
        Finish.NUMERICAL,
        Finish.MAX_TOKENS,
        Finish.NUMERICAL,
    ]
    alone = run_alone(small_engine(), admit(2, (1, 2, 3), max_tokens=5, banned_token_ids=(39,)))
    assert run.sequences[2].tokens == alone.tokens
    assert run.engine.page_counts().free == 64


def test_broken_logits_of_a_prompt_that_is_judged_end_the_sequence():
    run = EngineRun(small_engine(FakeDecoder(poison=[39]), max_prompt_logprob_rows=2))
    run.engine.apply(admit(1, (1, 2, 39, 4, 5, 6), prompt_logprobs=0))
    run.until_idle()
    assert run.sequences[1].finish is Finish.NUMERICAL
    assert run.prompts == {}


def test_an_adapter_in_use_is_not_evicted():
    run = EngineRun(small_engine())
    attach(run.engine, "a", 3, num_pages=5)
    run.engine.apply(admit(1, adapters=using("a"), grant_tokens=2))
    run.until_idle()
    error = refusal(run.engine, EvictAdapter(digest="a"))
    assert (error.reason, error.digest) == (RefusalReason.ADAPTER_IN_USE, "a")
    run.engine.apply(Retire(sequence_id=1))
    run.engine.apply(EvictAdapter(digest="a"))
    assert run.engine.page_counts().free == 64
    assert run.engine.attached_digests() == frozenset()


def test_a_digest_that_comes_back_is_used_with_its_new_weights():
    outputs = []
    engine = small_engine()
    for fingerprint in (3, 8):
        attach(engine, "a", fingerprint)
        # One step each, with the same rows: the last step's LoRA descriptor must not be used again.
        outputs.append(run_alone(engine, admit(1, adapters=using("a"), max_tokens=1, top_logprobs=5)).logprobs)
        engine.apply(EvictAdapter(digest="a"))
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapters": using("absent")}, RefusalReason.ADAPTER_NOT_ATTACHED),
        ({"grant_tokens": 400}, RefusalReason.OUT_OF_PAGES),
        ({"prompt": ()}, RefusalReason.FIELD_INVALID),
        ({"prompt": (1, 40)}, RefusalReason.FIELD_INVALID),
        ({"prompt": (-1,)}, RefusalReason.FIELD_INVALID),
        ({"prompt": (1,) * 64}, RefusalReason.FIELD_INVALID),
        ({"emitted_ids": (1, 2), "grant_tokens": 1}, RefusalReason.FIELD_INVALID),
        ({"emitted_ids": (1, 2), "max_tokens": 2}, RefusalReason.FIELD_INVALID),
        ({"max_tokens": 0}, RefusalReason.FIELD_INVALID),
        ({"min_tokens": 9}, RefusalReason.FIELD_INVALID),
        ({"stop_token_ids": (41,)}, RefusalReason.FIELD_INVALID),
        ({"temperature": -0.1}, RefusalReason.FIELD_INVALID),
        ({"temperature": float("nan")}, RefusalReason.FIELD_INVALID),
        ({"temperature": float("inf")}, RefusalReason.FIELD_INVALID),
        ({"top_k": -1}, RefusalReason.FIELD_INVALID),
        ({"top_p": 0.0}, RefusalReason.FIELD_INVALID),
        ({"top_p": 1.1}, RefusalReason.FIELD_INVALID),
        ({"min_p": 1.5}, RefusalReason.FIELD_INVALID),
        ({"repetition_penalty": 0.0}, RefusalReason.FIELD_INVALID),
        ({"presence_penalty": float("nan")}, RefusalReason.FIELD_INVALID),
        ({"logit_bias": ((40, 1.0),)}, RefusalReason.FIELD_INVALID),
        ({"logit_bias": ((4, float("inf")),)}, RefusalReason.FIELD_INVALID),
        ({"allowed_token_ids": (4,), "banned_token_ids": (4,)}, RefusalReason.FIELD_INVALID),
        ({"allowed_token_ids": (4,), "stop_token_ids": (4,), "min_tokens": 1}, RefusalReason.FIELD_INVALID),
        ({"banned_token_ids": tuple(range(40))}, RefusalReason.FIELD_INVALID),
        ({"seed": 1 << 64}, RefusalReason.FIELD_INVALID),
        ({"top_logprobs": 65}, RefusalReason.FIELD_INVALID),
        ({"prompt_logprobs": -1}, RefusalReason.FIELD_INVALID),
    ],
)
def test_an_impossible_admission_is_refused_and_the_others_go_on(changes: dict[str, object], reason: RefusalReason):
    run = EngineRun(small_engine())
    run.engine.apply(admit(1))
    prompt = changes.pop("prompt") if "prompt" in changes else (1, 2, 3)
    error = refusal(run.engine, admit(2, prompt, **changes))  # type: ignore[arg-type]
    assert (error.reason, error.sequence_id) == (reason, 2)
    run.until_idle()
    assert run.sequences[1].finish is Finish.MAX_TOKENS


def test_a_live_id_and_a_full_batch_are_refused():
    engine = small_engine(max_sequences=2)
    engine.apply(admit(1))
    assert refusal(engine, admit(1)).reason is RefusalReason.SEQUENCE_EXISTS
    engine.apply(admit(2))
    assert refusal(engine, admit(3)).reason is RefusalReason.TOO_MANY_SEQUENCES
    engine.apply(Retire(sequence_id=1))
    engine.apply(admit(3))


def test_an_adapter_is_attached_once_and_only_into_free_pages():
    engine = small_engine(num_pages=4)
    attach(engine, "a", 1, num_pages=3)
    error = refusal(engine, AttachAdapter(digest="a", weights=fake_weights(1), num_pages=1))
    assert error.reason is RefusalReason.ADAPTER_EXISTS
    error = refusal(engine, AttachAdapter(digest="b", weights=fake_weights(1), num_pages=2))
    assert (error.reason, error.digest) == (RefusalReason.OUT_OF_PAGES, "b")
    assert engine.attached_digests() == {"a"}


def test_prompt_logprobs_come_once_and_complete_whatever_the_chunks():
    prompt = tuple(range(1, 12))
    entries = []
    for budget in (2, 5, 64):
        run = EngineRun(small_engine(max_prompt_logprob_rows=budget))
        run.engine.apply(admit(1, prompt, prompt_logprobs=2, max_tokens=3))
        run.engine.apply(admit(2, prompt, max_tokens=3))
        run.until_idle()
        assert set(run.prompts) == {1}
        entries.append(run.prompts[1].entries)
    assert entries[0] == entries[1] == entries[2]
    assert entries[0][0] is None
    assert len(entries[0]) == len(prompt)
    assert all(entry is not None and len(entry.top) == 2 for entry in entries[0][1:])


def test_a_prompt_of_one_token_has_only_the_empty_entry():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, (3,), prompt_logprobs=1))
    run.until_idle()
    assert run.prompts[1].entries == (None,)


def test_prompt_logprobs_are_not_sent_again_after_a_preemption():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, prompt_logprobs=1, grant_tokens=2))
    run.until_idle()
    run.engine.apply(Retire(sequence_id=1))
    run.engine.apply(admit(1, prompt_logprobs=1, emitted_ids=tuple(run.sequences[1].tokens)))
    run.until_idle()
    assert run.sequences[1].finish is Finish.MAX_TOKENS
    assert len(run.prompts) == 1


def test_prompt_logprobs_equal_what_the_model_says_about_each_next_token():
    prompt = (3, 1, 4, 1, 5, 9, 2, 6)
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, prompt, prompt_logprobs=0, max_tokens=1))
    run.until_idle()
    for length in range(1, len(prompt)):
        single = run_alone(
            small_engine(), admit(2, prompt[:length], max_tokens=1, allowed_token_ids=(prompt[length],), top_logprobs=0)
        )
        assert single.logprobs[0] == run.prompts[1].entries[length]


def test_logprobs_come_from_the_raw_model_whatever_the_sampling():
    plain = run_alone(small_engine(), admit(1, max_tokens=1, top_logprobs=40))
    forced = run_alone(
        small_engine(), admit(1, max_tokens=1, top_logprobs=3, logit_bias=((7, 100.0),), temperature=0.5, top_k=2)
    )
    top = plain.logprobs[0].top
    assert forced.tokens == [7]
    assert forced.logprobs[0].top == top[:3]
    assert forced.logprobs[0].rank == [token_id for token_id, _ in top].index(7) + 1
    assert forced.logprobs[0].logprob == pytest.approx(dict(top)[7], abs=1e-6)
    assert sum(torch.tensor([logprob for _, logprob in top]).exp()) == pytest.approx(1.0, abs=1e-5)


def test_sequences_that_did_not_ask_get_no_logprobs():
    run = EngineRun(small_engine())
    run.engine.apply(admit(1, top_logprobs=0))
    run.engine.apply(admit(2))
    run.until_idle()
    assert len(run.sequences[1].logprobs) == 8
    assert run.sequences[2].logprobs == []


def test_an_engine_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="positions"):
        small_engine(max_context_tokens=4097)
    with pytest.raises(ValueError, match="page_size"):
        small_engine(page_size=0)
