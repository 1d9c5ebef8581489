"""Between a worker's stream and the core. Nothing behind this file mentions protobuf."""

from collections.abc import Sequence
from typing import Final

from google.protobuf import duration_pb2

from loraplex.worker.v1 import sequence_pb2, worker_link_pb2
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import InvalidArgument
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.sampling import Sampling

_FINISHES: Final = {
    worker_link_pb2.SEQUENCE_FINISH_REASON_STOP_TOKEN: events.WorkerFinish.STOP_TOKEN,
    worker_link_pb2.SEQUENCE_FINISH_REASON_MAX_TOKENS: events.WorkerFinish.MAX_TOKENS,
    worker_link_pb2.SEQUENCE_FINISH_REASON_CONTEXT_LIMIT: events.WorkerFinish.CONTEXT_LIMIT,
    worker_link_pb2.SEQUENCE_FINISH_REASON_NUMERICAL: events.WorkerFinish.NUMERICAL,
}
_ADAPTER_STATES: Final = {
    worker_link_pb2.WORKER_ADAPTER_STATE_DEVICE: events.WorkerAdapterState.DEVICE,
    worker_link_pb2.WORKER_ADAPTER_STATE_EVICTED: events.WorkerAdapterState.EVICTED,
    worker_link_pb2.WORKER_ADAPTER_STATE_FAILED: events.WorkerAdapterState.FAILED,
}


def info_from_pb(register: worker_link_pb2.Register, epoch: int) -> events.WorkerInfo:
    """Raises InvalidArgument (WORKER_INVALID) for sizes that cannot be."""
    sizes = {
        name: getattr(register, name)
        for name in (
            "num_pages",
            "page_size",
            "page_bytes",
            "adapter_parameter_bytes",
            "max_sequences",
            "max_step_tokens",
            "max_context_tokens",
            "vocab_size",
        )
    }
    missing = sorted(name for name, value in sizes.items() if not value)
    if missing or not register.worker_id:
        raise InvalidArgument(f"a worker must register {', '.join(missing) or 'worker_id'}", reason="WORKER_INVALID")
    return events.WorkerInfo(worker_id=register.worker_id, epoch=epoch, device=register.device, **sizes)


def report_from_pb(report: worker_link_pb2.StepReport, worker_id: str) -> events.StepReported:
    return events.StepReported(
        worker_id=worker_id,
        epoch=report.epoch,
        step=report.step,
        emissions=_emissions(report.tokens),
        finishes=tuple(_finish(finish) for finish in report.finishes),
        prompt_logprobs=tuple(
            events.PromptLogprobs(sequence_id=entry.sequence_id, entries=tuple(entry.tokens))
            for entry in report.prompt_logprobs
        ),
        num_rows=report.num_rows,
        num_decode_rows=report.num_decode_rows,
        adapter_digests=frozenset(report.adapter_digests),
        has_base_rows=report.has_base_rows,
        duration_ns=report.duration.ToNanoseconds(),
        prefix_hits=tuple(
            events.PrefixHit(sequence_id=hit.sequence_id, num_tokens=hit.num_tokens) for hit in report.prefix_hits
        ),
    )


def _emissions(columns: sequence_pb2.TokenColumns) -> tuple[events.Emission, ...]:
    ids = token_bytes.unpack(columns.token_ids_le32)
    if len(ids) != sum(columns.counts):
        raise InvalidArgument("token columns of different lengths", reason="PROTOCOL_VIOLATION")
    emissions, start = [], 0
    for number, (key, first, count) in enumerate(zip(columns.keys, columns.first_tokens, columns.counts, strict=True)):
        logprobs = tuple(columns.logprobs[number].tokens) if number in columns.logprobs else None
        token_ids = tuple(ids[start : start + count])
        emissions.append(events.Emission(sequence_id=key, first_index=first, token_ids=token_ids, logprobs=logprobs))
        start += count
    return tuple(emissions)


def _finish(pb: worker_link_pb2.SequenceFinish) -> events.SequenceFinish:
    if pb.reason not in _FINISHES:
        raise InvalidArgument(f"finish reason {pb.reason} is unknown", reason="PROTOCOL_VIOLATION")
    return events.SequenceFinish(
        sequence_id=pb.sequence_id,
        reason=_FINISHES[pb.reason],
        stop_token_id=pb.stop_token_id if pb.HasField("stop_token_id") else None,
    )


def adapter_from_pb(pb: worker_link_pb2.AdapterEvent, worker_id: str) -> events.AdapterChanged:
    if pb.state not in _ADAPTER_STATES:
        raise InvalidArgument(f"adapter state {pb.state} is unknown", reason="PROTOCOL_VIOLATION")
    return events.AdapterChanged(
        worker_id=worker_id,
        epoch=pb.epoch,
        digest=pb.digest,
        state=_ADAPTER_STATES[pb.state],
        num_bytes=pb.num_bytes,
        error=status.error_from_pb(pb.error) if pb.HasField("error") else None,
    )


def refused_from_pb(pb: worker_link_pb2.CommandRefused, worker_id: str) -> events.CommandRefused:
    return events.CommandRefused(
        worker_id=worker_id,
        epoch=pb.epoch,
        reason=pb.reason,
        sequence_id=pb.sequence_id or None,
        digest=pb.digest,
    )


def deltas_to_pb(batch: Sequence[commands.WorkerCommand], epoch: int) -> worker_link_pb2.ServeResponse:
    """One frame for all that a turn has for one worker.

    The worker applies it in the order of the fields, retire first: an admission that the same turn took back is left
    out, or it would outlive its retirement.
    """
    deltas = worker_link_pb2.Deltas(epoch=epoch)
    retired = {command.sequence_id for command in batch if isinstance(command, commands.Retire)}
    for command in batch:
        match command:
            case commands.Retire():
                deltas.retire.append(command.sequence_id)
            case commands.EvictAdapter():
                deltas.evict.append(command.digest)
            case commands.LoadAdapter():
                deltas.load.append(_load(command))
            case commands.Grant():
                deltas.grant.add(sequence_id=command.sequence_id, grant_tokens=command.grant_tokens)
            case commands.Admit():
                if command.sequence_id not in retired:
                    deltas.admit.append(admit_to_pb(command))
            case commands.SetBudget():
                deltas.max_step_tokens = command.max_step_tokens
    return worker_link_pb2.ServeResponse(deltas=deltas)


def _load(command: commands.LoadAdapter) -> worker_link_pb2.LoadAdapter:
    timeout = duration_pb2.Duration()
    timeout.FromNanoseconds(command.timeout_ns)
    return worker_link_pb2.LoadAdapter(digest=command.digest, num_pages=command.num_pages, timeout=timeout)


def admit_to_pb(command: commands.Admit) -> worker_link_pb2.Admit:
    return worker_link_pb2.Admit(
        sequence_id=command.sequence_id,
        prompt_ids_le32=token_bytes.pack(command.prompt_ids),
        emitted_ids_le32=token_bytes.pack(command.emitted_ids),
        adapters=[worker_link_pb2.AdapterWeight(digest=a.digest, weight=a.weight) for a in command.adapters],
        sampling=_sampling(command.sampling),
        stop=sequence_pb2.Stop(
            stop_token_ids_le32=token_bytes.pack(command.stop_token_ids),
            max_tokens=command.max_tokens,
            min_tokens=command.min_tokens,
        ),
        grant_tokens=command.grant_tokens,
        prefix_namespace=command.prefix_namespace,
    )


def _sampling(sampling: Sampling) -> sequence_pb2.Sampling:
    return sequence_pb2.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias_ids_le32=token_bytes.pack(token for token, _ in sampling.logit_bias),
        logit_bias_values=[value for _, value in sampling.logit_bias],
        allowed_token_ids_le32=token_bytes.pack(sampling.allowed_token_ids),
        banned_token_ids_le32=token_bytes.pack(sampling.banned_token_ids),
        seed=sampling.seed,
        top_logprobs=sampling.top_logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )
