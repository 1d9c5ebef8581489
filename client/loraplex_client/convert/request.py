"""SubmitRequest from what the caller gave."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from loraplex.v1 import adapter_ref_pb2, generation_pb2, sampling_pb2
from loraplex_client.adapter_ref import AdapterChoice, AdapterRef, WeightedAdapter
from loraplex_client.convert.duration import duration
from loraplex_client.prompt import Chat, Prompt
from loraplex_client.request_options import RequestOptions
from loraplex_client.sampling_params import SamplingParams
from loraplex_contract import token_bytes
from loraplex_contract.errors import field_error

_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1


def submit_request(
    prompt: Prompt, sampling: SamplingParams, adapter: AdapterChoice, options: RequestOptions
) -> generation_pb2.SubmitRequest:
    """Raises InvalidArgument or Unsupported, with the field's name, for what the wire cannot carry."""
    sampling.check()
    request = generation_pb2.SubmitRequest(
        request_id=options.request_id,
        model=options.model,
        sampling=sampling_to_pb(sampling),
        stop=stop_to_pb(sampling),
        output=output_to_pb(sampling),
        scheduling=scheduling_to_pb(options),
        labels=dict(options.labels),
    )
    if adapter is not None:
        request.adapter.CopyFrom(adapter_to_pb(adapter))
    _put_prompt(request, prompt)
    return request


def _put_prompt(request: generation_pb2.SubmitRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, Chat):
        request.chat.CopyFrom(chat_to_pb(prompt))
    elif prompt and isinstance(prompt[0], Mapping):
        request.chat.CopyFrom(chat_to_pb(Chat.of(cast(Sequence[Mapping[str, Any]], prompt))))
    else:
        request.tokens.ids_le32 = packed_ids("prompt", cast(Sequence[int], prompt))


def chat_to_pb(chat: Chat) -> generation_pb2.Chat:
    pb = generation_pb2.Chat(add_generation_prompt=chat.add_generation_prompt)
    for message in chat.messages:
        pb.messages.add(role=message.role, content=message.content)
    if chat.template_args:
        pb.template_args.update(dict(chat.template_args))
    return pb


def packed_ids(field: str, ids: Sequence[int]) -> bytes:
    try:
        return token_bytes.pack(ids)
    except (TypeError, OverflowError):
        raise field_error(field, "must be text or a sequence of token ids from 0 to 4294967295") from None


def adapter_to_pb(choice: AdapterChoice) -> adapter_ref_pb2.AdapterRef:
    if isinstance(choice, str):
        choice = AdapterRef.parse(choice)
    if isinstance(choice, AdapterRef):
        ref = adapter_ref_pb2.AdapterRef(name=choice.name, version=choice.version, uri=choice.uri)
        if choice.scale is not None:
            ref.scale = _real("adapter.scale", choice.scale)
        return ref
    return adapter_ref_pb2.AdapterRef(composition=[_weighted(part) for part in _parts(choice)])


def _parts(choice: Any) -> Iterable[WeightedAdapter]:
    parts = list(choice)
    if not parts or not all(isinstance(part, WeightedAdapter) for part in parts):
        raise field_error("adapter", "a composition is a list of at least one WeightedAdapter")
    return parts


def _weighted(part: WeightedAdapter) -> adapter_ref_pb2.WeightedAdapter:
    pb = adapter_ref_pb2.WeightedAdapter(name=part.name, version=part.version)
    if part.weight is not None:
        pb.weight = _real("adapter.composition.weight", part.weight)
    return pb


def sampling_to_pb(sampling: SamplingParams) -> sampling_pb2.SamplingParams:
    pb = sampling_pb2.SamplingParams(
        n=_count("n", sampling.n),
        top_k=0 if sampling.top_k == -1 else _count("top_k", sampling.top_k),
        allowed_token_ids=_ids("allowed_token_ids", sampling.allowed_token_ids),
        banned_token_ids=_ids("banned_token_ids", sampling.banned_token_ids),
    )
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        setattr(pb, name, _real(name, getattr(sampling, name)))
    for token_id, bias in (sampling.logit_bias or {}).items():
        pb.logit_bias[_count("logit_bias", token_id)] = _real("logit_bias", bias)
    # vLLM takes -1 for "no seed".
    if sampling.seed is not None and sampling.seed != -1:
        pb.seed = _count("seed", sampling.seed, _UINT64)
    return pb


def stop_to_pb(sampling: SamplingParams) -> sampling_pb2.StopCriteria:
    stop = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())
    if not all(isinstance(text, str) for text in stop):
        raise field_error("stop", "must be a string or a list of strings")
    pb = sampling_pb2.StopCriteria(
        min_tokens=_count("min_tokens", sampling.min_tokens),
        stop_strings=stop,
        stop_token_ids=_ids("stop_token_ids", sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        include_stop_string=sampling.include_stop_str_in_output,
    )
    if sampling.max_tokens is not None:
        pb.max_tokens = _count("max_tokens", sampling.max_tokens)
    if sampling.time_limit_s is not None:
        pb.time_limit.CopyFrom(duration("time_limit_s", sampling.time_limit_s))
    return pb


def output_to_pb(sampling: SamplingParams) -> generation_pb2.OutputOptions:
    pb = generation_pb2.OutputOptions(text=sampling.detokenize, skip_special_tokens=sampling.skip_special_tokens)
    if sampling.logprobs is not None:
        pb.top_logprobs = _count("logprobs", sampling.logprobs)
    if sampling.prompt_logprobs is not None:
        pb.prompt_logprobs = _count("prompt_logprobs", sampling.prompt_logprobs)
    return pb


def scheduling_to_pb(options: RequestOptions) -> generation_pb2.Scheduling:
    if not -100 <= options.priority <= 100:
        raise field_error("priority", f"{options.priority!r} is not a whole number from -100 to 100")
    pb = generation_pb2.Scheduling(priority=options.priority)
    if options.timeout_s is not None:
        pb.timeout.CopyFrom(duration("timeout_s", options.timeout_s))
    if options.queue_timeout_s is not None:
        pb.queue_timeout.CopyFrom(duration("queue_timeout_s", options.queue_timeout_s))
    if options.first_token_timeout_s is not None:
        pb.first_token_timeout.CopyFrom(duration("first_token_timeout_s", options.first_token_timeout_s))
    return pb


def _ids(field: str, values: Sequence[int] | None) -> list[int]:
    return [_count(field, value) for value in values or ()]


def _count(field: str, value: Any, limit: int = _UINT32) -> int:
    return int(_checked(field, value, lambda: isinstance(value, int) and 0 <= value <= limit, f"0 to {limit}"))


def _real(field: str, value: Any) -> float:
    return float(_checked(field, value, lambda: isinstance(value, (int, float)) and math.isfinite(value), "finite"))


def _checked(field: str, value: Any, is_good: Callable[[], bool], rule: str) -> Any:
    """Only what the wire can hold is checked here; the server knows the bounds and lists all violations at once."""
    if isinstance(value, bool) or not is_good():
        raise field_error(field, f"{value!r} is not a number of the allowed kind ({rule})")
    return value
