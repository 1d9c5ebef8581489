"""How a source fails, as the caller sees it. No address, header or text of the source goes into a message."""

from loraplex_contract.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

_RETRY_S = 5.0


def too_slow(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"uri: the source {what}; try again, or another source", reason="SOURCE_TIMEOUT")


def broken(what: str) -> Unavailable:
    return Unavailable(f"uri: the source {what}; try again", reason="SOURCE_BROKEN", retry_delay_s=_RETRY_S)


def not_found(file_name: str) -> InvalidArgument:
    message = f"uri: the source has no {file_name}"
    return InvalidArgument(message, reason="SOURCE_NOT_FOUND", metadata={"file": file_name})


def denied() -> FailedPrecondition:
    message = "uri: the source refuses this server's credentials, or wants some: the operator configures them"
    return FailedPrecondition(message, reason="SOURCE_DENIED")


def forbidden(message: str) -> PermissionDenied:
    return PermissionDenied(f"uri: {message}", reason="SOURCE_FORBIDDEN")


def too_large(file_name: str, max_bytes: int) -> FailedPrecondition:
    message = f"uri: {file_name} has more than {max_bytes} bytes, the most that this server takes"
    return FailedPrecondition(message, reason="ADAPTER_TOO_LARGE", metadata={"max_bytes": f"{max_bytes}"})


def no_room(message: str) -> ResourceExhausted:
    return ResourceExhausted(message, reason="FETCHES_FULL", retry_delay_s=_RETRY_S)
