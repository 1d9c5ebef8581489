"""Between the wire and plain values. Protobuf of the link goes in, protobuf of the public API comes out."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from loraplex.v1 import generation_pb2
from loraplex.worker.v1 import frontend_link_pb2, sequence_pb2
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import LoraplexError
from loraplex_frontend.delta import Delta
from loraplex_frontend.request import AdapterPart, GenerationRequest, Sampling, StopCriteria

STOPPED_BY_TOKEN: Final = (generation_pb2.FINISH_REASON_EOS, generation_pb2.FINISH_REASON_STOP_TOKEN)


def duration(seconds: float) -> Duration:
    pb = Duration()
    pb.FromNanoseconds(int(seconds * 1e9))
    return pb


def link_submit(
    request: GenerationRequest,
    *,
    handle: int,
    tenant: str,
    request_id: str,
    prompt_ids: Sequence[int],
    adapters: Sequence[AdapterPart],
    eos_token_ids: Sequence[int],
    timeout_s: float,
) -> frontend_link_pb2.LinkSubmit:
    """The scheduler's form of a request whose prompt is tokenised. ``timeout_s`` is what is left of its time."""
    pb = frontend_link_pb2.LinkSubmit(
        handle=handle,
        tenant=tenant,
        request_id=request_id,
        prompt_ids_le32=token_bytes.pack(prompt_ids),
        sampling=_sampling(request),
        n=request.sampling.num_sequences,
        stop=_stop(request.stop, eos_token_ids),
        priority=request.scheduling.priority,
        timeout=duration(timeout_s),
    )
    for part in adapters:
        pb.adapters.add(name=part.name, version=part.version, weight=part.weight)
    if request.scheduling.queue_timeout_s is not None:
        pb.queue_timeout.CopyFrom(duration(request.scheduling.queue_timeout_s))
    if request.scheduling.first_token_timeout_s is not None:
        pb.first_token_timeout.CopyFrom(duration(request.scheduling.first_token_timeout_s))
    if request.stop.time_limit_s is not None:
        pb.time_limit.CopyFrom(duration(request.stop.time_limit_s))
    return pb


def _sampling(request: GenerationRequest) -> sequence_pb2.Sampling:
    sampling: Sampling = request.sampling
    return sequence_pb2.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias_ids_le32=token_bytes.pack(token_id for token_id, _ in sampling.logit_bias),
        logit_bias_values=[bias for _, bias in sampling.logit_bias],
        allowed_token_ids_le32=token_bytes.pack(sampling.allowed_token_ids),
        banned_token_ids_le32=token_bytes.pack(sampling.banned_token_ids),
        seed=sampling.seed,
        top_logprobs=request.output.top_logprobs,
        prompt_logprobs=request.output.prompt_logprobs,
    )


def _stop(stop: StopCriteria, eos_token_ids: Sequence[int]) -> sequence_pb2.Stop:
    eos = () if stop.ignore_eos else eos_token_ids
    return sequence_pb2.Stop(
        stop_token_ids_le32=token_bytes.pack(sorted({*eos, *stop.token_ids})),
        max_tokens=stop.max_tokens,
        min_tokens=stop.min_tokens,
    )


def prompt_info(
    started: frontend_link_pb2.LinkStarted, *, num_prompt_tokens: int, model: str
) -> generation_pb2.PromptInfo:
    return generation_pb2.PromptInfo(
        num_prompt_tokens=num_prompt_tokens, adapters=started.adapters, model=model, seed=started.seed
    )


def add_logprobs(target: generation_pb2.PromptInfo | generation_pb2.SequenceDelta, source: Sequence[object]) -> None:
    """Appends the link's logprobs to a public message."""
    for entry in source:
        fill_logprobs(target.logprobs.add(), entry)


def fill_logprobs(target: generation_pb2.TokenLogprobs, entry: object) -> None:
    assert isinstance(entry, sequence_pb2.Logprobs)
    target.logprob = entry.logprob
    target.rank = entry.rank
    target.top_token_ids.extend(token_bytes.unpack(entry.top_ids_le32))
    target.top_logprobs.extend(entry.top_logprobs)


def fill_delta(target: generation_pb2.SequenceDelta, delta: Delta) -> None:
    target.handle = delta.handle
    target.index = delta.index
    target.first_token = delta.first_token
    target.num_tokens = delta.num_tokens
    if delta.token_ids:
        target.token_ids.extend(delta.token_ids)
    if delta.text:
        target.text = delta.text
    if delta.logprobs:
        add_logprobs(target, delta.logprobs)
    if delta.finish is not None:
        target.finish.CopyFrom(delta.finish)


def finish(
    ended: frontend_link_pb2.LinkEnded, *, eos_token_ids: frozenset[int], own_stop_ids: frozenset[int]
) -> generation_pb2.Finish:
    """How the scheduler says that a sequence ended. It does not know which stop ids are the model's end of sequence."""
    reason = ended.reason
    pb = generation_pb2.Finish(reason=reason, usage=ended.usage, timing=ended.timing)
    if ended.HasField("stop_token_id"):
        pb.stop_token_id = ended.stop_token_id
        if reason in STOPPED_BY_TOKEN:
            is_eos = ended.stop_token_id in eos_token_ids and ended.stop_token_id not in own_stop_ids
            pb.reason = STOPPED_BY_TOKEN[0] if is_eos else STOPPED_BY_TOKEN[1]
    if ended.HasField("error"):
        pb.error.CopyFrom(ended.error)
    return pb


def error_finish(error: LoraplexError, *, num_prompt_tokens: int, num_output_tokens: int) -> generation_pb2.Finish:
    """The end of a sequence that failed on this side of the link."""
    return generation_pb2.Finish(
        reason=generation_pb2.FINISH_REASON_ERROR,
        error=status.error_to_pb(error),
        usage=generation_pb2.Usage(num_prompt_tokens=num_prompt_tokens, num_output_tokens=num_output_tokens),
    )


def stop_string_finish(
    stop_string: str, ended: generation_pb2.Finish | None, *, num_prompt_tokens: int, num_output_tokens: int
) -> generation_pb2.Finish:
    """The end of a sequence at a stop string, with the scheduler's figures where they came."""
    pb = generation_pb2.Finish(reason=generation_pb2.FINISH_REASON_STOP_STRING, stop_string=stop_string)
    if ended is not None:
        pb.usage.CopyFrom(ended.usage)
        pb.timing.CopyFrom(ended.timing)
    pb.usage.num_prompt_tokens = num_prompt_tokens
    # The worker may have been some tokens ahead when it heard of the stop.
    pb.usage.num_output_tokens = num_output_tokens
    return pb
