"""Between a frontend's stream and the core. Nothing behind this file mentions protobuf."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

from google.protobuf import duration_pb2

from loraplex.v1 import adapter_ref_pb2, generation_pb2
from loraplex.worker.v1 import frontend_link_pb2, sequence_pb2
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import InvalidArgument
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.event import CancelRequested, Event, RequestKey, SequenceStopped, Submitted
from loraplex_scheduler.core.finish import FinishReason, Timing, Usage
from loraplex_scheduler.core.sampling import Sampling
from loraplex_scheduler.core.statistics import CoreStatistics
from loraplex_scheduler.dispatch import FrontendCommand

_REASONS: Final = {
    FinishReason.STOP_STRING: generation_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.STOP_TOKEN: generation_pb2.FINISH_REASON_STOP_TOKEN,
    FinishReason.MAX_TOKENS: generation_pb2.FINISH_REASON_MAX_TOKENS,
    FinishReason.CONTEXT_LIMIT: generation_pb2.FINISH_REASON_CONTEXT_LIMIT,
    FinishReason.TIME_LIMIT: generation_pb2.FINISH_REASON_TIME_LIMIT,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: generation_pb2.FINISH_REASON_ERROR,
}


def events_from_pb(upward: frontend_link_pb2.Upward, frontend_id: str, *, now_ns: int) -> Iterator[Event]:
    """In the order of the frame's fields. Raises InvalidArgument for what no frontend of ours sends."""
    for submit in upward.submit:
        yield submitted_from_pb(submit, frontend_id, now_ns=now_ns)
    for stop in upward.stop:
        key = RequestKey(frontend_id, stop.handle)
        yield SequenceStopped(key=key, index=stop.index, num_tokens=stop.num_tokens)
    for cancel in upward.cancel:
        yield CancelRequested(
            frontend_id=frontend_id,
            key=RequestKey(frontend_id, cancel.handle) if cancel.handle else None,
            tenant=cancel.tenant,
            request_id=cancel.request_id,
            nonce=cancel.nonce,
        )


def submitted_from_pb(pb: frontend_link_pb2.LinkSubmit, frontend_id: str, *, now_ns: int) -> Submitted:
    if not pb.handle or not pb.prompt_ids_le32 or not 1 <= pb.n <= 1024:
        raise _violation("a submit needs a handle, a prompt and n")
    return Submitted(
        key=RequestKey(frontend_id, pb.handle),
        tenant=pb.tenant,
        request_id=pb.request_id,
        prompt_ids=_ids(pb.prompt_ids_le32),
        adapters=tuple(AdapterPart(name=a.name, version=a.version, weight=a.weight) for a in pb.adapters),
        sampling=_sampling(pb.sampling),
        num_sequences=pb.n,
        max_tokens=pb.stop.max_tokens if pb.stop.HasField("max_tokens") else None,
        min_tokens=pb.stop.min_tokens,
        stop_token_ids=_ids(pb.stop.stop_token_ids_le32),
        priority=pb.priority,
        deadline_ns=_after(now_ns, pb, "timeout"),
        queue_deadline_ns=_after(now_ns, pb, "queue_timeout"),
        first_token_deadline_ns=_after(now_ns, pb, "first_token_timeout"),
        time_limit_ns=_after(now_ns, pb, "time_limit"),
    )


def _after(now_ns: int, pb: frontend_link_pb2.LinkSubmit, field: Any) -> int | None:
    return now_ns + getattr(pb, field).ToNanoseconds() if pb.HasField(field) else None


def _ids(data: bytes) -> tuple[int, ...]:
    try:
        return tuple(token_bytes.unpack(data))
    except ValueError:
        raise _violation(f"{len(data)} bytes of token ids are not a multiple of four") from None


def _violation(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="PROTOCOL_VIOLATION")


def _sampling(pb: sequence_pb2.Sampling) -> Sampling:
    bias_ids = _ids(pb.logit_bias_ids_le32)
    if len(bias_ids) != len(pb.logit_bias_values):
        raise _violation(f"{len(bias_ids)} logit bias ids and {len(pb.logit_bias_values)} values")
    return Sampling(
        temperature=pb.temperature,
        top_k=pb.top_k,
        top_p=pb.top_p,
        min_p=pb.min_p,
        repetition_penalty=pb.repetition_penalty,
        presence_penalty=pb.presence_penalty,
        frequency_penalty=pb.frequency_penalty,
        logit_bias=tuple(zip(bias_ids, pb.logit_bias_values, strict=True)),
        allowed_token_ids=_ids(pb.allowed_token_ids_le32),
        banned_token_ids=_ids(pb.banned_token_ids_le32),
        seed=pb.seed if pb.HasField("seed") else None,
        top_logprobs=pb.top_logprobs if pb.HasField("top_logprobs") else None,
        prompt_logprobs=pb.prompt_logprobs if pb.HasField("prompt_logprobs") else None,
    )


def downward_to_pb(turn: int, batch: Sequence[FrontendCommand]) -> frontend_link_pb2.LinkResponse:
    """One frame for all that a turn has for one frontend."""
    downward = frontend_link_pb2.Downward(turn=turn)
    tokens: list[commands.Tokens] = []
    for command in batch:
        match command:
            case commands.Tokens():
                tokens.append(command)
            case commands.Finished():
                downward.ended.append(_ended(command))
            case commands.Accepted():
                downward.accepted.add(handle=command.key.handle, queue_position=command.queue_position)
            case commands.Started():
                downward.started.append(_started(command))
            case commands.Rejected():
                downward.rejected.add(handle=command.key.handle, error=status.error_to_pb(command.error))
            case commands.PromptLogprobsReady():
                entries = cast("Iterable[sequence_pb2.Logprobs]", command.entries)
                downward.prompt_logprobs.add(handle=command.key.handle, tokens=entries)
            case commands.CancelAnswered():
                downward.cancelled.add(nonce=command.nonce, found=command.found)
    if tokens:
        downward.tokens.CopyFrom(_columns(tokens))
    return frontend_link_pb2.LinkResponse(downward=downward)


def _started(command: commands.Started) -> frontend_link_pb2.LinkStarted:
    adapters = [
        adapter_ref_pb2.ResolvedAdapter(name=a.name, version=a.number, digest=a.digest, weight=a.weight)
        for a in command.adapters
    ]
    return frontend_link_pb2.LinkStarted(handle=command.key.handle, adapters=adapters, seed=command.seed)


def _columns(tokens: Sequence[commands.Tokens]) -> sequence_pb2.TokenColumns:
    columns = sequence_pb2.TokenColumns(
        keys=[entry.key.handle for entry in tokens],
        indexes=[entry.index for entry in tokens],
        first_tokens=[entry.first_index for entry in tokens],
        counts=[len(entry.token_ids) for entry in tokens],
        token_ids_le32=token_bytes.pack(token for entry in tokens for token in entry.token_ids),
    )
    for number, entry in enumerate(tokens):
        if entry.logprobs is not None:
            columns.logprobs[number].tokens.extend(cast("Iterable[sequence_pb2.Logprobs]", entry.logprobs))
    return columns


def _ended(command: commands.Finished) -> frontend_link_pb2.LinkEnded:
    pb = frontend_link_pb2.LinkEnded(
        handle=command.key.handle,
        index=command.index,
        reason=_REASONS[command.reason],
        stop_token_id=command.stop_token_id,
        usage=_usage(command.usage),
        timing=_timing(command.timing),
    )
    if command.error is not None:
        pb.error.CopyFrom(status.error_to_pb(command.error))
    return pb


def _usage(usage: Usage) -> generation_pb2.Usage:
    return generation_pb2.Usage(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_output_tokens=usage.num_output_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_recomputed_tokens=usage.num_recomputed_tokens,
    )


def _timing(timing: Timing) -> generation_pb2.Timing:
    return generation_pb2.Timing(
        queued=_duration(timing.queued_ns),
        adapter_load=_duration(timing.adapter_load_ns),
        first_token=_duration(timing.first_token_ns),
        total=_duration(timing.total_ns),
    )


def _duration(num_ns: int | None) -> duration_pb2.Duration | None:
    if num_ns is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(num_ns)
    return duration


def summary_to_pb(statistics: CoreStatistics) -> frontend_link_pb2.ClusterSummary:
    return frontend_link_pb2.ClusterSummary(
        num_ready_workers=len(statistics.workers),
        max_context_tokens=statistics.max_context_tokens,
        num_queued=statistics.num_queued_requests,
        num_running=statistics.num_running_requests,
    )
