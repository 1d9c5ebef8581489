"""What the scheduler writes is what the engine gets, and what the engine reports is what the scheduler reads."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.worker.v1 import sequence_pb2, worker_link_pb2
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import DataLoss
from loraplex_worker import convert
from loraplex_worker.engine import command, report
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.load_adapter import LoadAdapter
from loraplex_worker.registration import Registration
from tests.fakes import fake_worker_gateway as fake

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
IDS = st.lists(U32, max_size=8).map(tuple)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
PAIRS = st.lists(st.tuples(U32, FLOAT32), max_size=4).map(tuple)

SAMPLINGS = st.builds(
    command.Sampling,
    temperature=FLOAT32,
    top_k=U32,
    top_p=FLOAT32,
    min_p=FLOAT32,
    repetition_penalty=FLOAT32,
    presence_penalty=FLOAT32,
    frequency_penalty=FLOAT32,
    logit_bias=PAIRS,
    allowed_token_ids=IDS,
    banned_token_ids=IDS,
    seed=U64,
    top_logprobs=st.none() | U32,
    prompt_logprobs=st.none() | U32,
)
ADMITS = st.builds(
    command.Admit,
    sequence_id=U64,
    prompt_ids=IDS,
    emitted_ids=IDS,
    adapters=st.lists(st.builds(command.AdapterWeight, digest=DIGESTS, weight=FLOAT32), max_size=3).map(tuple),
    sampling=SAMPLINGS,
    stop=st.builds(command.Stop, stop_token_ids=IDS, max_tokens=U32, min_tokens=U32),
    grant_tokens=U32,
    prefix_namespace=st.binary(max_size=32),
)
LOGPROBS = st.builds(report.TokenLogprobs, logprob=FLOAT32, rank=U32, top=PAIRS)


@st.composite
def emissions(draw):
    token_ids = draw(IDS)
    finish = draw(st.sampled_from(report.Finish) if not token_ids else st.none() | st.sampled_from(report.Finish))
    logprobs = st.lists(LOGPROBS, min_size=len(token_ids), max_size=len(token_ids)).map(tuple)
    return report.Emission(
        sequence_id=draw(U64),
        first_index=draw(U32),
        token_ids=token_ids,
        logprobs=draw(st.none() | logprobs) if token_ids else None,
        finish=finish,
        stop_token_id=draw(U32) if finish is report.Finish.STOP_TOKEN else None,
    )


REPORTS = st.builds(
    report.StepReport,
    step=U64,
    emissions=st.lists(emissions(), max_size=5, unique_by=lambda emission: emission.sequence_id).map(tuple),
    prompt_logprobs=st.lists(
        st.builds(
            report.PromptLogprobs,
            sequence_id=U64,
            entries=st.lists(LOGPROBS, max_size=3).map(lambda entries: (None, *entries)),
        ),
        max_size=2,
    ).map(tuple),
    num_rows=U32,
    num_decode_rows=U32,
    num_prefill_rows=U32,
    adapter_digests=st.frozensets(DIGESTS, max_size=3),
    pages=st.builds(report.PageCounts, free=U32, kv=U32, adapter=U32, total=U32),
    duration_ns=st.integers(0, 10**12),
    prefix_hits=st.lists(st.builds(report.PrefixHit, sequence_id=U64, num_tokens=U32), max_size=3).map(tuple),
)


def admit_to_pb(admit):
    """The scheduler's half."""
    sampling = sequence_pb2.Sampling(
        temperature=admit.sampling.temperature,
        top_k=admit.sampling.top_k,
        top_p=admit.sampling.top_p,
        min_p=admit.sampling.min_p,
        repetition_penalty=admit.sampling.repetition_penalty,
        presence_penalty=admit.sampling.presence_penalty,
        frequency_penalty=admit.sampling.frequency_penalty,
        logit_bias_ids_le32=token_bytes.pack(token for token, _ in admit.sampling.logit_bias),
        logit_bias_values=[bias for _, bias in admit.sampling.logit_bias],
        allowed_token_ids_le32=token_bytes.pack(admit.sampling.allowed_token_ids),
        banned_token_ids_le32=token_bytes.pack(admit.sampling.banned_token_ids),
        seed=admit.sampling.seed,
        top_logprobs=admit.sampling.top_logprobs,
        prompt_logprobs=admit.sampling.prompt_logprobs,
    )
    return worker_link_pb2.Admit(
        sequence_id=admit.sequence_id,
        prompt_ids_le32=token_bytes.pack(admit.prompt_ids),
        emitted_ids_le32=token_bytes.pack(admit.emitted_ids),
        adapters=[worker_link_pb2.AdapterWeight(digest=a.digest, weight=a.weight) for a in admit.adapters],
        sampling=sampling,
        stop=sequence_pb2.Stop(
            stop_token_ids_le32=token_bytes.pack(admit.stop.stop_token_ids),
            max_tokens=admit.stop.max_tokens,
            min_tokens=admit.stop.min_tokens,
        ),
        grant_tokens=admit.grant_tokens,
        prefix_namespace=admit.prefix_namespace,
    )


def logprobs_of(pb):
    return report.TokenLogprobs(
        logprob=pb.logprob,
        rank=pb.rank,
        top=tuple(zip(token_bytes.unpack(pb.top_ids_le32), pb.top_logprobs, strict=True)),
    )


def emissions_of(pb):
    """The scheduler's half: a StepReport's columns and finishes put back into one record per sequence."""
    found = {}
    for entry, (key, first, token_ids) in enumerate(fake.columns_of(pb.tokens)):
        run = pb.tokens.logprobs[entry].tokens if entry in pb.tokens.logprobs else None
        logprobs = None if run is None else tuple(logprobs_of(token) for token in run)
        found[key] = {"first": first, "tokens": tuple(token_ids), "logprobs": logprobs}
    for finish in pb.finishes:
        stop_token_id = finish.stop_token_id if finish.HasField("stop_token_id") else None
        name = worker_link_pb2.SequenceFinishReason.Name(finish.reason).removeprefix("SEQUENCE_FINISH_REASON_")
        found.setdefault(finish.sequence_id, {"tokens": (), "logprobs": None})
        found[finish.sequence_id] |= {"finish": report.Finish[name], "stop": stop_token_id}
    return found


def expected_of(emission):
    expected = {"tokens": emission.token_ids, "logprobs": emission.logprobs}
    if emission.token_ids:
        expected["first"] = emission.first_index
    if emission.finish is not None:
        expected |= {"finish": emission.finish, "stop": emission.stop_token_id}
    return expected


@given(ADMITS)
def test_an_admission_crosses_the_wire_unchanged(admit):
    pb = worker_link_pb2.Admit.FromString(admit_to_pb(admit).SerializeToString())
    assert convert.admit_from_pb(pb) == admit


@given(REPORTS, st.integers(1, 2**63))
def test_a_report_crosses_the_wire_unchanged(step, epoch):
    made = convert.report_to_pb(step, epoch=epoch)
    pb = worker_link_pb2.StepReport.FromString(made.SerializeToString())
    assert emissions_of(pb) == {emission.sequence_id: expected_of(emission) for emission in step.emissions}
    assert [(entry.sequence_id, *map(logprobs_of, entry.tokens)) for entry in pb.prompt_logprobs] == [
        (entry.sequence_id, *entry.entries[1:]) for entry in step.prompt_logprobs
    ]
    assert (pb.epoch, pb.step, pb.num_rows, pb.num_decode_rows, pb.has_base_rows) == (
        epoch,
        step.step,
        step.num_rows,
        step.num_decode_rows,
        step.has_base_rows,
    )
    assert set(pb.adapter_digests) == step.adapter_digests
    assert (pb.num_pages_free, pb.num_pages_kv, pb.num_pages_adapter) == (
        step.pages.free,
        step.pages.kv,
        step.pages.adapter,
    )
    assert pb.duration.ToNanoseconds() == step.duration_ns
    assert [(hit.sequence_id, hit.num_tokens) for hit in pb.prefix_hits] == [
        (hit.sequence_id, hit.num_tokens) for hit in step.prefix_hits
    ]


def test_a_frame_is_applied_in_the_order_of_its_fields():
    deltas = worker_link_pb2.Deltas(
        max_step_tokens=99,
        admit=[fake.admit(5, [1, 2])],
        grant=[worker_link_pb2.Grant(sequence_id=4, grant_tokens=3)],
        load=[fake.load("b" * 64, num_pages=2, timeout_s=1.5)],
        evict=["a" * 64],
        retire=[1, 2],
    )
    *before, admit, budget = convert.items_from_pb(deltas)
    assert before == [
        command.Retire(sequence_id=1),
        command.Retire(sequence_id=2),
        command.EvictAdapter(digest="a" * 64),
        LoadAdapter(digest="b" * 64, num_pages=2, timeout_s=1.5),
        command.Grant(sequence_id=4, grant_tokens=3),
    ]
    assert isinstance(admit, command.Admit)
    assert admit.sequence_id == 5
    assert budget == command.SetBudget(max_step_tokens=99)


def test_a_budget_of_zero_changes_nothing():
    assert list(convert.items_from_pb(worker_link_pb2.Deltas(epoch=1))) == []


BROKEN: dict[str, dict[str, Any]] = {
    "prompt_ids_le32": {"prompt_ids_le32": b"\1\2\3"},
    "emitted_ids_le32": {"emitted_ids_le32": b"\1"},
    "sampling.seed": {"sampling": sequence_pb2.Sampling()},
    "sampling.logit_bias": {"sampling": sequence_pb2.Sampling(seed=1, logit_bias_values=[1.0])},
    "sampling.banned_token_ids_le32": {"sampling": sequence_pb2.Sampling(seed=1, banned_token_ids_le32=b"\0")},
    "stop.max_tokens": {"stop": sequence_pb2.Stop()},
}


@pytest.mark.parametrize("field", BROKEN)
def test_an_admission_that_cannot_be_read_is_refused_by_field_and_harms_no_other(field):
    broken = fake.admit(8, [1], **BROKEN[field])
    refused, healthy = convert.items_from_pb(worker_link_pb2.Deltas(admit=[broken, fake.admit(9, [1])]))
    assert isinstance(refused, CommandRefused)
    assert (refused.reason, refused.sequence_id) == (RefusalReason.FIELD_INVALID, 8)
    assert refused.message.startswith(field)
    assert isinstance(healthy, command.Admit)


def test_a_load_without_a_timeout_leaves_it_to_the_worker():
    assert convert.load_from_pb(worker_link_pb2.LoadAdapter(digest="c" * 64, num_pages=1)).timeout_s is None


def test_a_refusal_names_sequence_digest_and_stable_reason():
    refused = CommandRefused(RefusalReason.OUT_OF_PAGES, "text for people", sequence_id=3)
    pb = convert.refusal_to_pb(refused, epoch=5)
    assert (pb.epoch, pb.sequence_id, pb.digest, pb.reason) == (5, 3, "", "OUT_OF_PAGES")
    assert convert.refusal_to_pb(CommandRefused(RefusalReason.ADAPTER_IN_USE, "", digest="d"), epoch=5).sequence_id == 0


def test_a_failed_load_carries_the_error_with_its_code():
    error = DataLoss("the stored bytes do not match", metadata={"digest": "d"})
    pb = convert.failed_to_pb("d" * 64, error, epoch=2)
    assert pb.state == worker_link_pb2.WORKER_ADAPTER_STATE_FAILED
    back = status.error_from_pb(pb.error)
    assert (type(back), back.reason, back.message) == (DataLoss, "ARTIFACT_CORRUPT", error.message)


def test_every_finish_has_its_own_name_on_the_wire():
    for finish in report.Finish:
        emission = report.Emission(sequence_id=1, first_index=0, token_ids=(), finish=finish)
        name = worker_link_pb2.SequenceFinishReason.Name(convert._finish(emission).reason)
        assert name == f"SEQUENCE_FINISH_REASON_{finish.name}"


def test_a_logprob_of_minus_infinity_survives():
    pb = convert._logprobs(report.TokenLogprobs(logprob=-math.inf, rank=7))
    assert logprobs_of(sequence_pb2.Logprobs.FromString(pb.SerializeToString())).logprob == -math.inf


def test_the_registration_fills_every_field_of_the_wire_but_held():
    registration = Registration(
        worker_id="w",
        model_fingerprint="f" * 64,
        device="cpu",
        num_pages=1,
        page_size=2,
        page_bytes=3,
        max_sequences=4,
        max_step_tokens=5,
        max_context_tokens=6,
        vocab_size=7,
        adapter_parameter_bytes=8,
    )
    pb = convert.registration_to_pb(registration, incarnation="i")
    unset = {field.name for field in pb.DESCRIPTOR.fields} - {field.name for field, _ in pb.ListFields()}
    assert unset == {"held"}
