"""The one table from errors to gRPC status codes, and both forms an error takes on the wire.

In band (inside a stream) an error is a ``loraplex.v1.Error``; out of band it is a gRPC status with
``google.rpc.ErrorInfo``, ``BadRequest`` and ``RetryInfo``. Both are made from the same ``LoraplexError``.
"""

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from loraplex.v1 import error_pb2
from loraplex_contract import errors

DOMAIN: Final = "loraplex"
MAX_STATUS_BYTES: Final = 4096
"""gRPC drops trailers at random above 8 KiB."""

CODES: Final[dict[type[errors.LoraplexError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
_CLASSES: Final = {code.value[0]: cls for cls, code in CODES.items()}


def code_of(error: errors.LoraplexError) -> grpc.StatusCode:
    return CODES[type(error)]


def error_to_pb(error: errors.LoraplexError) -> error_pb2.Error:
    """The in-band form."""
    pb = error_pb2.Error(code=code_of(error).value[0], reason=error.reason, message=error.message)
    pb.metadata.update(error.metadata)
    for violation in error.violations:
        pb.violations.add(field=violation.field, description=violation.description)
    if error.retry_delay_s is not None:
        pb.retry_delay.CopyFrom(_duration(error.retry_delay_s))
    return pb


def error_from_pb(pb: error_pb2.Error) -> errors.LoraplexError:
    """The inverse of ``error_to_pb``; a code that is not in the table becomes Internal."""
    violations = tuple(errors.FieldViolation(field=v.field, description=v.description) for v in pb.violations)
    return _CLASSES.get(pb.code, errors.Internal)(
        pb.message,
        reason=pb.reason,
        metadata=dict(pb.metadata),
        violations=violations,
        retry_delay_s=pb.retry_delay.ToNanoseconds() / 1e9 if pb.HasField("retry_delay") else None,
    )


def status_of(error: errors.LoraplexError) -> status_pb2.Status:
    """The out-of-band form, at most ``MAX_STATUS_BYTES`` long."""
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message[:1024])
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() + 8 <= MAX_STATUS_BYTES:
            status.details.append(packed)
    return status


def error_from_status(status: status_pb2.Status) -> errors.LoraplexError:
    """The inverse of ``status_of``, for clients of our own servers."""
    pb = error_pb2.Error(code=status.code, message=status.message)
    for detail in status.details:
        _merge_detail(pb, detail)
    return error_from_pb(pb)


def _merge_detail(pb: error_pb2.Error, detail: any_pb2.Any) -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        pb.reason = info.reason
        pb.metadata.update(info.metadata)
    elif detail.Unpack(bad):
        for violation in bad.field_violations:
            pb.violations.add(field=violation.field, description=violation.description)
    elif detail.Unpack(retry):
        pb.retry_delay.CopyFrom(retry.retry_delay)


def _details(error: errors.LoraplexError) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    if error.retry_delay_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_delay_s)))
    if error.reason in QUOTA_REASONS:
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.reason, description=error.message[:512])
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if error.violations:
        details.append(_bad_request(error.violations))
    return details


QUOTA_REASONS: Final = frozenset({"TENANT_QUOTA", "QUOTA_EXCEEDED"})


def _bad_request(violations: tuple[errors.FieldViolation, ...]) -> error_details_pb2.BadRequest:
    """As many violations as leave room for the rest of the status; the last entry counts those left out."""
    bad = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        if bad.ByteSize() > MAX_STATUS_BYTES // 2:
            bad.field_violations.add(field="...", description=f"{len(violations) - index} more are not listed")
            break
        bad.field_violations.add(field=violation.field[:128], description=violation.description[:512])
    return bad


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
