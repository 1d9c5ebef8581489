"""Between the wire and the engine. Nothing behind this file mentions protobuf.

What the scheduler sends becomes engine commands, what the engine reports becomes frames.
"""

import dataclasses
from collections.abc import Iterator
from typing import Final, TypeAlias

from google.protobuf import duration_pb2

from loraplex.worker.v1 import sequence_pb2, worker_link_pb2
from loraplex_contract import errors, status, token_bytes
from loraplex_worker.engine import command, report
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.load_adapter import LoadAdapter
from loraplex_worker.registration import Registration

PROTOCOL_VERSION: Final = 1
DeltaItem: TypeAlias = command.Command | LoadAdapter | CommandRefused

_FINISH_REASONS: Final = {
    report.Finish.STOP_TOKEN: worker_link_pb2.SEQUENCE_FINISH_REASON_STOP_TOKEN,
    report.Finish.MAX_TOKENS: worker_link_pb2.SEQUENCE_FINISH_REASON_MAX_TOKENS,
    report.Finish.CONTEXT_LIMIT: worker_link_pb2.SEQUENCE_FINISH_REASON_CONTEXT_LIMIT,
    report.Finish.NUMERICAL: worker_link_pb2.SEQUENCE_FINISH_REASON_NUMERICAL,
}


def registration_to_pb(registration: Registration, *, incarnation: str) -> worker_link_pb2.Register:
    return worker_link_pb2.Register(
        protocol_version=PROTOCOL_VERSION, incarnation=incarnation, **dataclasses.asdict(registration)
    )


def items_from_pb(deltas: worker_link_pb2.Deltas) -> Iterator[DeltaItem]:
    """Everything in one frame, in the order in which it must be applied.

    An admission that cannot be read comes out as its refusal, so that it harms nothing else in the frame.
    """
    for sequence_id in deltas.retire:
        yield command.Retire(sequence_id=sequence_id)
    for digest in deltas.evict:
        yield command.EvictAdapter(digest=digest)
    for load in deltas.load:
        yield load_from_pb(load)
    for grant in deltas.grant:
        yield command.Grant(sequence_id=grant.sequence_id, grant_tokens=grant.grant_tokens)
    for admit in deltas.admit:
        yield _admit_or_refusal(admit)
    if deltas.max_step_tokens:
        yield command.SetBudget(max_step_tokens=deltas.max_step_tokens)


def load_from_pb(load: worker_link_pb2.LoadAdapter) -> LoadAdapter:
    timeout_s = load.timeout.ToNanoseconds() / 1e9
    return LoadAdapter(digest=load.digest, num_pages=load.num_pages, timeout_s=timeout_s if timeout_s > 0 else None)


def admit_from_pb(admit: worker_link_pb2.Admit) -> command.Admit:
    """Raises CommandRefused where bytes are not whole ids, columns differ in length, or a required field is absent."""
    return command.Admit(
        sequence_id=admit.sequence_id,
        prompt_ids=_ids(admit, "prompt_ids_le32", admit.prompt_ids_le32),
        emitted_ids=_ids(admit, "emitted_ids_le32", admit.emitted_ids_le32),
        adapters=tuple(command.AdapterWeight(digest=pair.digest, weight=pair.weight) for pair in admit.adapters),
        sampling=_sampling(admit),
        stop=_stop(admit),
        grant_tokens=admit.grant_tokens,
        prefix_namespace=admit.prefix_namespace,
    )


def report_to_pb(step: report.StepReport, *, epoch: int) -> worker_link_pb2.StepReport:
    """One step's report as it goes to the scheduler of ``epoch``."""
    return worker_link_pb2.StepReport(
        epoch=epoch,
        step=step.step,
        tokens=_columns([emission for emission in step.emissions if emission.token_ids]),
        finishes=[_finish(emission) for emission in step.emissions if emission.finish is not None],
        prompt_logprobs=[_prompt_logprobs(entry) for entry in step.prompt_logprobs],
        num_rows=step.num_rows,
        num_decode_rows=step.num_decode_rows,
        adapter_digests=sorted(step.adapter_digests),
        has_base_rows=step.has_base_rows,
        num_pages_free=step.pages.free,
        num_pages_kv=step.pages.kv,
        num_pages_adapter=step.pages.adapter,
        duration=duration_of(step.duration_ns),
        prefix_hits=[
            worker_link_pb2.PrefixHit(sequence_id=hit.sequence_id, num_tokens=hit.num_tokens)
            for hit in step.prefix_hits
        ],
    )


def refusal_to_pb(refused: CommandRefused, *, epoch: int) -> worker_link_pb2.CommandRefused:
    """The stable reason alone goes over the wire; the message is for this worker's log."""
    return worker_link_pb2.CommandRefused(
        epoch=epoch,
        sequence_id=refused.sequence_id or 0,
        digest=refused.digest or "",
        reason=refused.reason.value,
    )


def on_device_to_pb(digest: str, *, epoch: int, load_time_ns: int, num_bytes: int) -> worker_link_pb2.AdapterEvent:
    """The version can be used from now on."""
    return worker_link_pb2.AdapterEvent(
        epoch=epoch,
        digest=digest,
        state=worker_link_pb2.WORKER_ADAPTER_STATE_DEVICE,
        load_time=duration_of(load_time_ns),
        num_bytes=num_bytes,
    )


def evicted_to_pb(digest: str, *, epoch: int) -> worker_link_pb2.AdapterEvent:
    """The version is off the device and its pages are free."""
    return worker_link_pb2.AdapterEvent(epoch=epoch, digest=digest, state=worker_link_pb2.WORKER_ADAPTER_STATE_EVICTED)


def failed_to_pb(digest: str, error: errors.LoraplexError, *, epoch: int) -> worker_link_pb2.AdapterEvent:
    """The version did not reach the device; nothing was charged for it."""
    return worker_link_pb2.AdapterEvent(
        epoch=epoch,
        digest=digest,
        state=worker_link_pb2.WORKER_ADAPTER_STATE_FAILED,
        error=status.error_to_pb(error),
    )


def duration_of(num_ns: int) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(num_ns)
    return duration


def _admit_or_refusal(admit: worker_link_pb2.Admit) -> command.Admit | CommandRefused:
    try:
        return admit_from_pb(admit)
    except CommandRefused as refused:
        return refused


def _refusal(admit: worker_link_pb2.Admit, message: str) -> CommandRefused:
    return CommandRefused(RefusalReason.FIELD_INVALID, message, sequence_id=admit.sequence_id)


def _ids(admit: worker_link_pb2.Admit, field: str, data: bytes) -> tuple[int, ...]:
    try:
        return tuple(token_bytes.unpack(data))
    except ValueError:
        raise _refusal(admit, f"{field}: {len(data)} bytes, must be a multiple of 4") from None


def _sampling(admit: worker_link_pb2.Admit) -> command.Sampling:
    pb = admit.sampling
    if not pb.HasField("seed"):
        raise _refusal(admit, "sampling.seed: absent, the scheduler must pick one")
    return command.Sampling(
        temperature=pb.temperature,
        top_k=pb.top_k,
        top_p=pb.top_p,
        min_p=pb.min_p,
        repetition_penalty=pb.repetition_penalty,
        presence_penalty=pb.presence_penalty,
        frequency_penalty=pb.frequency_penalty,
        logit_bias=_logit_bias(admit),
        allowed_token_ids=_ids(admit, "sampling.allowed_token_ids_le32", pb.allowed_token_ids_le32),
        banned_token_ids=_ids(admit, "sampling.banned_token_ids_le32", pb.banned_token_ids_le32),
        seed=pb.seed,
        top_logprobs=pb.top_logprobs if pb.HasField("top_logprobs") else None,
        prompt_logprobs=pb.prompt_logprobs if pb.HasField("prompt_logprobs") else None,
    )


def _logit_bias(admit: worker_link_pb2.Admit) -> tuple[tuple[int, float], ...]:
    ids = _ids(admit, "sampling.logit_bias_ids_le32", admit.sampling.logit_bias_ids_le32)
    values = admit.sampling.logit_bias_values
    if len(ids) != len(values):
        raise _refusal(admit, f"sampling.logit_bias: {len(ids)} ids and {len(values)} values")
    return tuple(zip(ids, values, strict=True))


def _stop(admit: worker_link_pb2.Admit) -> command.Stop:
    if not admit.stop.HasField("max_tokens"):
        raise _refusal(admit, "stop.max_tokens: absent, the scheduler must fill it in")
    return command.Stop(
        stop_token_ids=_ids(admit, "stop.stop_token_ids_le32", admit.stop.stop_token_ids_le32),
        max_tokens=admit.stop.max_tokens,
        min_tokens=admit.stop.min_tokens,
    )


def _columns(emissions: list[report.Emission]) -> sequence_pb2.TokenColumns:
    columns = sequence_pb2.TokenColumns(
        keys=[emission.sequence_id for emission in emissions],
        first_tokens=[emission.first_index for emission in emissions],
        counts=[len(emission.token_ids) for emission in emissions],
        token_ids_le32=token_bytes.pack(token for emission in emissions for token in emission.token_ids),
    )
    for entry, emission in enumerate(emissions):
        if emission.logprobs is not None:
            columns.logprobs[entry].tokens.extend(_logprobs(token) for token in emission.logprobs)
    return columns


def _logprobs(token: report.TokenLogprobs) -> sequence_pb2.Logprobs:
    return sequence_pb2.Logprobs(
        logprob=token.logprob,
        rank=token.rank,
        top_ids_le32=token_bytes.pack(token_id for token_id, _ in token.top),
        top_logprobs=[logprob for _, logprob in token.top],
    )


def _prompt_logprobs(entry: report.PromptLogprobs) -> worker_link_pb2.PromptLogprobs:
    """Nothing precedes the first prompt token, so the wire has no entry for it."""
    return worker_link_pb2.PromptLogprobs(
        sequence_id=entry.sequence_id, tokens=[_logprobs(token) for token in entry.entries if token is not None]
    )


def _finish(emission: report.Emission) -> worker_link_pb2.SequenceFinish:
    assert emission.finish is not None
    return worker_link_pb2.SequenceFinish(
        sequence_id=emission.sequence_id,
        reason=_FINISH_REASONS[emission.finish],
        stop_token_id=emission.stop_token_id,
    )
