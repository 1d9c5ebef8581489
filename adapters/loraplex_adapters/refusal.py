"""Reasons an adapter is refused for, and how names from its files are shown in messages."""

from loraplex_contract.errors import FailedPrecondition, InvalidArgument

BASE_MISMATCH = "ADAPTER_BASE_MISMATCH"
DTYPE_UNSUPPORTED = "ADAPTER_DTYPE_UNSUPPORTED"
FEATURE_UNSUPPORTED = "ADAPTER_FEATURE_UNSUPPORTED"
FORMAT = "ADAPTER_FORMAT"
MALFORMED = "ADAPTER_MALFORMED"
MODULE_UNSUPPORTED = "ADAPTER_MODULE_UNSUPPORTED"
NONFINITE = "ADAPTER_NONFINITE"
NO_MODULES = "ADAPTER_NO_MODULES"
RANK_TOO_LARGE = "ADAPTER_RANK_TOO_LARGE"
SOURCE_NOT_FOUND = "SOURCE_NOT_FOUND"

_MAX_QUOTED_CHARS = 120


def quote(value: object) -> str:
    """``repr`` of something from an untrusted file, cut to a length that fits a message."""
    text = repr(value[: _MAX_QUOTED_CHARS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def malformed(message: str, *, reason: str = MALFORMED, **metadata: str) -> InvalidArgument:
    """The adapter's own files contradict each other or the format."""
    return InvalidArgument(message, reason=reason, metadata=metadata)


def unsupported_feature(field: str, message: str) -> FailedPrecondition:
    """A valid PEFT feature that this server does not have; ``field`` is its name in adapter_config.json."""
    return FailedPrecondition(message, reason=FEATURE_UNSUPPORTED, metadata={"field": field[:_MAX_QUOTED_CHARS]})


def unfit(message: str, *, reason: str, **metadata: str) -> FailedPrecondition:
    """A valid adapter that this base model or this server's limits do not admit."""
    return FailedPrecondition(message, reason=reason, metadata=metadata)
