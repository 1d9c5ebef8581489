"""Checks of ``SamplingParams``, ``StopCriteria`` and ``OutputOptions``."""

from collections.abc import Sequence
from typing import Any, cast

from loraplex.v1 import generation_pb2, sampling_pb2
from loraplex_frontend.request import OutputOptions, Sampling, StopCriteria
from loraplex_frontend.request_limits import (
    MAX_ALLOWED_IDS,
    MAX_LOGIT_BIAS,
    MAX_SEQUENCES,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_LOGPROBS,
    UINT32_MAX,
    RequestLimits,
)
from loraplex_frontend.violations import Violations

_INVALID = "SAMPLING_INVALID"
_RANGES: tuple[tuple[str, float, float, float, bool], ...] = (
    # field, default, least, most, least is excluded
    ("temperature", 1.0, 0.0, 100.0, False),
    ("top_p", 1.0, 0.0, 1.0, True),
    ("min_p", 0.0, 0.0, 1.0, False),
    ("repetition_penalty", 1.0, 0.0, 10.0, True),
    ("presence_penalty", 0.0, -2.0, 2.0, False),
    ("frequency_penalty", 0.0, -2.0, 2.0, False),
)
_MAX_ABS_BIAS = 100.0


def check_sampling(pb: sampling_pb2.SamplingParams, found: Violations, limits: RequestLimits) -> Sampling:
    """The values with defaults filled in; what is wrong goes to ``found``."""
    found.known_fields_only("sampling", pb)
    values = {}
    for name, default, least, most, is_open in _RANGES:
        values[name] = getattr(pb, name) if pb.HasField(cast(Any, name)) else default
        found.in_range(f"sampling.{name}", values[name], least, most, reason=_INVALID, is_open=is_open)
    num_sequences = pb.n if pb.HasField("n") else 1
    found.in_range("sampling.n", num_sequences, 1, MAX_SEQUENCES, reason=_INVALID)
    allowed = _token_ids("sampling.allowed_token_ids", pb.allowed_token_ids, MAX_ALLOWED_IDS, found, limits)
    banned = _token_ids("sampling.banned_token_ids", pb.banned_token_ids, MAX_ALLOWED_IDS, found, limits)
    if allowed and set(allowed) <= set(banned):
        found.add("sampling.banned_token_ids", "bans every id of allowed_token_ids: leave one", _INVALID)
    return Sampling(
        **values,
        top_k=pb.top_k,
        logit_bias=_logit_bias(pb, found, limits),
        allowed_token_ids=allowed,
        banned_token_ids=banned,
        seed=pb.seed if pb.HasField("seed") else None,
        num_sequences=num_sequences,
    )


def _logit_bias(
    pb: sampling_pb2.SamplingParams, found: Violations, limits: RequestLimits
) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    if not found.at_most(field, pb.logit_bias, MAX_LOGIT_BIAS, reason=_INVALID):
        return ()
    entries = sorted(pb.logit_bias.items())
    for token_id, bias in entries:
        if not found.in_range(f"{field}[{token_id}]", bias, -_MAX_ABS_BIAS, _MAX_ABS_BIAS, reason=_INVALID):
            break
    if entries and entries[-1][0] >= limits.vocab_size:
        _out_of_vocab(field, len(entries) - 1, entries[-1][0], found, limits)
    return tuple(entries)


def _token_ids(field: str, ids: Sequence[int], most: int, found: Violations, limits: RequestLimits) -> tuple[int, ...]:
    if not found.at_most(field, ids, most, reason=_INVALID):
        return ()
    result = tuple(ids)
    check_vocabulary(field, result, found, limits)
    return result


def check_vocabulary(field: str, token_ids: Sequence[int], found: Violations, limits: RequestLimits) -> None:
    """Names the first id that the model does not have."""
    if token_ids and max(token_ids) >= limits.vocab_size:
        index = next(i for i, token_id in enumerate(token_ids) if token_id >= limits.vocab_size)
        _out_of_vocab(field, index, token_ids[index], found, limits)


def _out_of_vocab(field: str, index: int, token_id: int, found: Violations, limits: RequestLimits) -> None:
    description = f"entry {index} is token id {token_id}, the vocabulary has {limits.vocab_size} ids"
    found.add(field, description, "TOKEN_OUT_OF_VOCAB", index=index, id=token_id, vocabSize=limits.vocab_size)


def check_stop(pb: sampling_pb2.StopCriteria, found: Violations, limits: RequestLimits) -> StopCriteria:
    """The values with defaults filled in; what is wrong goes to ``found``."""
    found.known_fields_only("stop", pb)
    max_tokens = pb.max_tokens if pb.HasField("max_tokens") else None
    if max_tokens is not None:
        found.in_range("stop.max_tokens", max_tokens, 1, UINT32_MAX, reason=_INVALID)
    most = limits.max_context_tokens if max_tokens is None else max_tokens
    if pb.min_tokens > most:
        found.add(
            "stop.min_tokens", f"is {pb.min_tokens}, must be at most {most}, the most tokens there can be", _INVALID
        )
    time_limit = pb.time_limit if pb.HasField("time_limit") else None
    return StopCriteria(
        max_tokens=max_tokens,
        min_tokens=pb.min_tokens,
        strings=_stop_strings(pb, found),
        token_ids=_token_ids("stop.stop_token_ids", pb.stop_token_ids, MAX_STOP_TOKEN_IDS, found, limits),
        ignore_eos=pb.ignore_eos,
        include_stop_string=pb.include_stop_string,
        time_limit_s=time_limit
        and found.duration("stop.time_limit", time_limit, limits.max_timeout_s, reason=_INVALID),
    )


def _stop_strings(pb: sampling_pb2.StopCriteria, found: Violations) -> tuple[str, ...]:
    if not found.at_most("stop.stop_strings", pb.stop_strings, MAX_STOP_STRINGS, reason=_INVALID):
        return ()
    for index, string in enumerate(pb.stop_strings):
        size = len(string.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            found.add(
                f"stop.stop_strings[{index}]", f"has {size} bytes, must have 1 to {MAX_STOP_STRING_BYTES}", _INVALID
            )
    return tuple(pb.stop_strings)


def check_output(pb: generation_pb2.OutputOptions, found: Violations) -> OutputOptions:
    """The values with defaults filled in; what is wrong goes to ``found``."""
    found.known_fields_only("output", pb)
    numbers: dict[str, int | None] = {}
    for name in ("top_logprobs", "prompt_logprobs"):
        value = getattr(pb, name) if pb.HasField(cast(Any, name)) else None
        numbers[name] = value
        if value is not None:
            found.in_range(f"output.{name}", value, 0, MAX_TOP_LOGPROBS)
    return OutputOptions(
        text=pb.text if pb.HasField("text") else True,
        token_ids=pb.token_ids if pb.HasField("token_ids") else True,
        skip_special_tokens=pb.skip_special_tokens if pb.HasField("skip_special_tokens") else True,
        **numbers,
    )
