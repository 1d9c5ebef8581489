"""Every error that loraplex tells a caller about. No gRPC here: ``status.py`` maps these to status codes.

LoraplexError
├── RequestRejected              the caller must change something
│   ├── InvalidArgument          wrong on any deployment
│   ├── NotFound                 unknown, or not the caller's: the two read the same
│   ├── AlreadyExists            the name or the id is taken by something else
│   ├── FailedPrecondition       right elsewhere, not here and now
│   ├── OutOfRange               a cursor that is ahead of, or no longer within, what is kept
│   ├── Unauthenticated          no credential, or a bad one
│   ├── PermissionDenied         a good credential that lacks the scope
│   ├── Unsupported              a feature that this server does not have
│   └── Aborted                  a compare-and-set that was lost
├── TryLater                     the same call may work later
│   ├── ResourceExhausted        queue full, over quota, refused early
│   └── Unavailable              no worker, or the scheduler is away
├── DeadlineExceeded             time ran out before the answer was complete
├── Cancelled                    the caller asked for it
├── DataLoss                     stored bytes do not match their digest
└── Internal                     our bug; the caller gets an incident id and nothing else
"""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One request field that is wrong, as in ``google.rpc.BadRequest``."""

    field: str
    """Path of the field from the request's root, e.g. ``sampling.top_p``."""
    description: str
    """What was given, what is allowed, what to change."""


class LoraplexError(Exception):
    """Base of all errors with a stable reason.

    Args:
        message: one sentence for the caller: no paths, no stack, no names of other tenants.
        reason: UPPER_SNAKE, stable, documented in ``docs/errors.md``.
        metadata: machine-readable figures (limits, sizes, names) of ``google.rpc.ErrorInfo``.
        violations: for bad fields, all of them and not only the first.
        retry_delay_s: when the caller may try again (``google.rpc.RetryInfo``).
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_delay_s = retry_delay_s


class RequestRejected(LoraplexError):
    """The caller must change something before this can work."""


class InvalidArgument(RequestRejected):
    default_reason = "FIELD_INVALID"


class NotFound(RequestRejected):
    default_reason = "NOT_FOUND"


class AlreadyExists(RequestRejected):
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(RequestRejected):
    default_reason = "FAILED_PRECONDITION"


class OutOfRange(RequestRejected):
    default_reason = "OUT_OF_RANGE"


class Unauthenticated(RequestRejected):
    default_reason = "CREDENTIALS_MISSING"


class PermissionDenied(RequestRejected):
    default_reason = "SCOPE_MISSING"


class Unsupported(RequestRejected):
    default_reason = "UNIMPLEMENTED"


class Aborted(RequestRejected):
    default_reason = "ABORTED"


class TryLater(LoraplexError):
    """The same call may work later; ``retry_delay_s`` says when."""


class ResourceExhausted(TryLater):
    default_reason = "QUEUE_FULL"


class Unavailable(TryLater):
    default_reason = "NO_WORKERS"


class DeadlineExceeded(LoraplexError):
    default_reason = "DEADLINE"


class Cancelled(LoraplexError):
    default_reason = "CANCELLED"


class DataLoss(LoraplexError):
    default_reason = "ARTIFACT_CORRUPT"


class Internal(LoraplexError):
    default_reason = "INTERNAL"


def field_error(field: str, description: str, *, reason: str = "FIELD_INVALID") -> InvalidArgument:
    """An InvalidArgument about exactly one field."""
    violation = FieldViolation(field=field, description=description)
    return InvalidArgument(f"{field}: {description}", reason=reason, violations=(violation,))
