"""From a ``SubmitRequest`` to a checked request: every field against its bound before anything is made from it."""

from typing import Any, cast

from loraplex.v1 import generation_pb2
from loraplex_contract import ids
from loraplex_contract.errors import NotFound
from loraplex_frontend.request import Coalescing, GenerationRequest, Scheduling
from loraplex_frontend.request_limits import MAX_HOLD_S, MAX_HOLD_TOKENS, RequestLimits
from loraplex_frontend.validate_adapter import check_adapter
from loraplex_frontend.validate_prompt import check_prompt
from loraplex_frontend.validate_sampling import check_output, check_sampling, check_stop
from loraplex_frontend.violations import Violations

_MAX_ABS_PRIORITY = 100


def check_submit(pb: generation_pb2.SubmitRequest, limits: RequestLimits) -> GenerationRequest:
    """Checks all fields and fills in defaults. The length of a text or chat is known only after tokenising it.

    Raises:
        InvalidArgument: every field that is wrong; the reason is that of the first one.
        NotFound: another model than the one that is served (MODEL_NOT_FOUND).
    """
    found = Violations()
    found.known_fields_only("request", pb)
    if pb.request_id and not ids.is_request_id(pb.request_id):
        found.add("request_id", "must have 1 to 128 visible ASCII characters")
    adapters, source = check_adapter(pb.adapter, found) if pb.HasField("adapter") else ((), None)
    request = GenerationRequest(
        request_id=pb.request_id,
        adapters=adapters,
        source=source,
        prompt=check_prompt(pb, found, limits),
        sampling=check_sampling(pb.sampling, found, limits),
        stop=check_stop(pb.stop, found, limits),
        output=check_output(pb.output, found),
        scheduling=_check_scheduling(pb.scheduling, found, limits),
    )
    found.labels("labels", pb.labels)
    found.raise_if_any()
    check_model(pb.model, limits.model_name)
    return request


def check_model(name: str, served: str) -> None:
    """Raises NotFound (MODEL_NOT_FOUND) for any but the served model and the empty name."""
    if name not in ("", served):
        message = f"model: {name[:128]!r} is not served here, only {served!r} is"
        raise NotFound(message, reason="MODEL_NOT_FOUND", metadata={"model": name[:128], "served": served})


def _check_scheduling(pb: generation_pb2.Scheduling, found: Violations, limits: RequestLimits) -> Scheduling:
    found.known_fields_only("scheduling", pb)
    found.in_range("scheduling.priority", pb.priority, -_MAX_ABS_PRIORITY, _MAX_ABS_PRIORITY)
    seconds: dict[str, float | None] = {"timeout": None, "queue_timeout": None, "first_token_timeout": None}
    for name in seconds:
        if pb.HasField(cast(Any, name)):
            seconds[name] = found.duration(f"scheduling.{name}", getattr(pb, name), limits.max_timeout_s)
    return Scheduling(
        priority=pb.priority,
        timeout_s=seconds["timeout"],
        queue_timeout_s=seconds["queue_timeout"],
        first_token_timeout_s=seconds["first_token_timeout"],
    )


def check_stream_options(pb: generation_pb2.StreamOptions) -> Coalescing:
    """Raises InvalidArgument."""
    found = Violations()
    found.known_fields_only("stream", pb)
    found.in_range("stream.min_tokens", pb.min_tokens, 0, MAX_HOLD_TOKENS)
    delay_s = 0.0
    if pb.HasField("max_delay") and (pb.max_delay.seconds or pb.max_delay.nanos):
        delay_s = found.duration("stream.max_delay", pb.max_delay, MAX_HOLD_S) or 0.0
    elif pb.min_tokens > 1:
        found.add("stream.max_delay", f"is needed with min_tokens above 1: up to {MAX_HOLD_S:g} s")
    found.raise_if_any()
    return Coalescing(min_tokens=max(1, pb.min_tokens), max_delay_s=delay_s)
