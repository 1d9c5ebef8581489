"""Counts every call of every service, between the interceptor that tells errors and the one that asks who calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc

from loraplex_contract import status
from loraplex_contract.errors import LoraplexError
from loraplex_contract.metrics import MetricTable


class RpcMetrics(grpc.aio.ServerInterceptor):
    """Goes inside the error interceptor: it sees what handlers raise.

    Only methods that a server has become labels. A message that does not parse never comes this far.
    """

    def __init__(self, table: MetricTable) -> None:
        self._table = table

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        arity = ("stream" if handler.request_streaming else "unary") + "_"
        arity += "stream" if handler.response_streaming else "unary"
        make = getattr(grpc, f"{arity}_rpc_method_handler")
        call = self._counted(str(handler_call_details.method).lstrip("/"), getattr(handler, arity))
        return make(call, handler.request_deserializer, handler.response_serializer)

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            began_s = time.monotonic()
            code = "OK"
            try:
                result = method(request, context)
                if not hasattr(result, "__aiter__"):
                    return await result
                async for response in result:
                    await context.write(response)
            except BaseException as error:
                code = self._failed(name, error)
                raise
            finally:
                self._table.number("loraplex_rpcs_total").add(1, name, code)
                self._table.histogram("loraplex_rpc_seconds").observe(time.monotonic() - began_s, name)

        return call

    def _failed(self, name: str, error: BaseException) -> str:
        """The code that the client gets."""
        if isinstance(error, asyncio.CancelledError):
            return "CANCELLED"
        ours = next(_ours(error), None)
        reason = "INTERNAL" if ours is None else ours.reason
        self._table.number("loraplex_rpc_errors_total").add(1, name, reason)
        return "INTERNAL" if ours is None else status.code_of(ours).name


def _ours(error: BaseException) -> Iterator[LoraplexError]:
    if isinstance(error, LoraplexError):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _ours(inner)
