"""Deltas, finishes and prompt facts from their messages."""

from typing import Final

from loraplex.v1 import adapter_ref_pb2, generation_pb2
from loraplex_client.adapter_ref import ResolvedAdapter
from loraplex_client.convert.duration import seconds
from loraplex_client.delta import Delta, TokenLogprobs
from loraplex_client.finish import Finish, FinishReason, Timing, Usage
from loraplex_client.output import PromptInfo
from loraplex_contract.errors import Internal

_REASONS: Final = {
    generation_pb2.FINISH_REASON_EOS: FinishReason.EOS,
    generation_pb2.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
    generation_pb2.FINISH_REASON_STOP_TOKEN: FinishReason.STOP_TOKEN,
    generation_pb2.FINISH_REASON_MAX_TOKENS: FinishReason.MAX_TOKENS,
    generation_pb2.FINISH_REASON_CONTEXT_LIMIT: FinishReason.CONTEXT_LIMIT,
    generation_pb2.FINISH_REASON_TIME_LIMIT: FinishReason.TIME_LIMIT,
    generation_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


def delta(pb: generation_pb2.SequenceDelta) -> Delta:
    """A delta whose finish is no error; see ``is_failed``."""
    return Delta(
        index=pb.index,
        first_token=pb.first_token,
        num_tokens=num_tokens(pb),
        token_ids=tuple(pb.token_ids),
        text=pb.text,
        logprobs=tuple(token_logprobs(entry) for entry in pb.logprobs),
        finish=finish(pb.finish) if pb.HasField("finish") else None,
    )


def num_tokens(pb: generation_pb2.SequenceDelta) -> int:
    return pb.num_tokens or len(pb.token_ids)


def is_failed(pb: generation_pb2.SequenceDelta) -> bool:
    return pb.HasField("finish") and pb.finish.reason == generation_pb2.FINISH_REASON_ERROR


def finish(pb: generation_pb2.Finish) -> Finish:
    reason = _REASONS.get(pb.reason)
    if reason is None:
        raise Internal(f"finish reason {pb.reason} is not known here: the server is newer than this client")
    return Finish(
        reason=reason,
        stop_string=pb.stop_string or None,
        stop_token_id=pb.stop_token_id if pb.HasField("stop_token_id") else None,
        usage=_usage(pb.usage),
        timing=_timing(pb.timing),
    )


def _usage(pb: generation_pb2.Usage) -> Usage:
    return Usage(
        num_prompt_tokens=pb.num_prompt_tokens,
        num_cached_tokens=pb.num_cached_tokens,
        num_output_tokens=pb.num_output_tokens,
        num_recomputed_tokens=pb.num_recomputed_tokens,
    )


def _timing(pb: generation_pb2.Timing) -> Timing:
    return Timing(
        queued_s=seconds(pb.queued),
        adapter_load_s=seconds(pb.adapter_load),
        first_token_s=seconds(pb.first_token),
        total_s=seconds(pb.total),
    )


def token_logprobs(pb: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    top = tuple(zip(pb.top_token_ids, pb.top_logprobs, strict=True))
    return TokenLogprobs(logprob=pb.logprob, rank=pb.rank, top=top)


def prompt_info(pb: generation_pb2.PromptInfo) -> PromptInfo:
    logprobs = [token_logprobs(entry) if entry.ByteSize() else None for entry in pb.logprobs]
    return PromptInfo(
        num_prompt_tokens=pb.num_prompt_tokens,
        adapters=tuple(resolved_adapter(entry) for entry in pb.adapters),
        model=pb.model,
        seed=pb.seed,
        logprobs=tuple(logprobs),
    )


def resolved_adapter(pb: adapter_ref_pb2.ResolvedAdapter) -> ResolvedAdapter:
    return ResolvedAdapter(name=pb.name, version=pb.version, digest=pb.digest, weight=pb.weight)
