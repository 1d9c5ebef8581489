"""gRPC failures as the errors of ``loraplex_contract.errors``, so that ``except NotFound`` works."""

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from loraplex_contract import status
from loraplex_contract.errors import LoraplexError, Unavailable


def from_rpc(error: grpc.RpcError, target: str) -> LoraplexError:
    """The server's own error where it sent one; else one made from the bare status."""
    call: Any = error
    rich = _rich_status(call)
    if rich is not None:
        return status.error_from_status(rich)
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"no answer from {target}: is a server running there? ({call.details()})", reason="UNREACHABLE"
        )
    return status.error_from_status(status_pb2.Status(code=call.code().value[0], message=call.details() or ""))


def _rich_status(call: Any) -> status_pb2.Status | None:
    # A proxy may send details that contradict the status: the status then stands alone.
    try:
        found: status_pb2.Status | None = rpc_status.from_call(call)
    except ValueError:
        return None
    return found


@contextlib.contextmanager
def errors_of(target: str) -> Iterator[None]:
    """Raises LoraplexError in place of RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error, target) from None
