"""Seconds to and from protobuf durations and timestamps."""

import datetime

from google.protobuf import duration_pb2, timestamp_pb2

from loraplex_contract.errors import field_error

_MAX_S = 315_576_000_000


def duration(field: str, seconds: float) -> duration_pb2.Duration:
    """Raises InvalidArgument for what no duration can hold."""
    if not 0 <= seconds <= _MAX_S:
        raise field_error(field, f"{seconds} is not a number of seconds from 0 to {_MAX_S}")
    pb = duration_pb2.Duration()
    pb.FromNanoseconds(round(seconds * 1e9))
    return pb


def seconds(pb: duration_pb2.Duration) -> float:
    return pb.ToNanoseconds() / 1e9


def moment(pb: timestamp_pb2.Timestamp) -> datetime.datetime | None:
    """None for an unset timestamp."""
    return pb.ToDatetime(tzinfo=datetime.UTC) if pb.ByteSize() else None
