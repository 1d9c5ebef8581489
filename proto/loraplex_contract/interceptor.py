"""The outermost server interceptor: what no handler may let out, this one stops.

grpc.aio sends the text of an uncaught exception to the client as UNKNOWN, and answers bytes that do not parse the same
way. Here every ``LoraplexError`` becomes its status, a message that does not parse becomes INVALID_ARGUMENT, and
anything else becomes INTERNAL with an incident id, under which the log holds the trace.
"""

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from loraplex_contract import errors, status

_log = logging.getLogger(__name__)


class _Malformed:
    """Stands for a message that did not parse, since a deserialiser cannot answer for itself."""


_MALFORMED: Final = _Malformed()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Put first in the list of interceptors, so that it is outermost."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return handler if handler is None else _guard(handler)


def _guard(handler: Any) -> Any:
    """The same handler with its parsing and its errors under control."""
    arity = ("stream" if handler.request_streaming else "unary") + "_"
    arity += "stream" if handler.response_streaming else "unary"
    wrap = _streaming if handler.response_streaming else _unary
    make = getattr(grpc, f"{arity}_rpc_method_handler")
    return make(wrap(getattr(handler, arity)), _tolerant(handler.request_deserializer), handler.response_serializer)


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return _MALFORMED

    return parse_or_mark


def _unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with errors_as_status(context):
            return await method(_checked(request), context)

    return call


def _streaming(method: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    """Takes both kinds of handler: one that yields and one that writes to its context."""

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with errors_as_status(context):
            result = method(_checked(request), context)
            if not hasattr(result, "__aiter__"):
                await result
                return
            async for response in result:
                await context.write(response)

    return call


def _checked(request: Any) -> Any:
    if request is _MALFORMED:
        raise _malformed()
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _MALFORMED:
            raise _malformed()
        yield request


def _malformed() -> errors.InvalidArgument:
    message = "the message is not valid protobuf for this method: check the client's .proto files against the server's"
    return errors.InvalidArgument(message, reason="MALFORMED_MESSAGE")


@contextlib.asynccontextmanager
async def errors_as_status(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the status of what is raised inside; cancellation and ``context.abort`` pass through."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await context.abort_with_status(rpc_status.to_status(status.status_of(tell_apart(error))))


def tell_apart(error: BaseException) -> errors.LoraplexError:
    """The error that the caller may see: itself, the first of a group, or Internal with an incident id."""
    if isinstance(error, BaseExceptionGroup):
        return tell_apart(_most_telling(error))
    if isinstance(error, errors.LoraplexError):
        return error
    incident = uuid.uuid4().hex[:16]
    _log.error("incident %s", incident, exc_info=error)
    return errors.Internal("internal error: give the operator the incident id", metadata={"incident": incident})


def _most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    known = group.subgroup(errors.LoraplexError)
    return (known or group).exceptions[0]
