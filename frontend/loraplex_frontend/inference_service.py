"""``loraplex.v1.InferenceService``: the RPC edge. What happens behind it is in ``call`` and ``session``."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from loraplex.v1 import generation_pb2, inference_pb2, inference_pb2_grpc, session_pb2
from loraplex_contract import ids
from loraplex_contract.errors import NotFound, Unsupported
from loraplex_frontend.call import Call
from loraplex_frontend.open_calls import OpenCalls
from loraplex_frontend.principal import current_tenant
from loraplex_frontend.request import Coalescing
from loraplex_frontend.scheduler_link import SchedulerLink
from loraplex_frontend.session import Session
from loraplex_frontend.session_settings import SessionSettings
from loraplex_frontend.submission import Submission
from loraplex_frontend.validate import check_stream_options
from loraplex_frontend.violations import Violations

_MAX_CANCELS: Final = 1_024
_CANCEL_TIMEOUT_S: Final = 10.0


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves generations.

    Args:
        max_response_bytes: of the answer of Submit.
    """

    def __init__(
        self,
        *,
        submission: Submission,
        link: SchedulerLink,
        calls: OpenCalls,
        sessions: SessionSettings,
        max_response_bytes: int,
        grace_s: float,
    ) -> None:
        self._submission = submission
        self._link = link
        self._calls = calls
        self._sessions = sessions
        self._max_response_bytes = max_response_bytes
        self._grace_s = grace_s

    async def Submit(self, request: generation_pb2.SubmitRequest, context: Any) -> inference_pb2.SubmitResponse:
        return await self._call(Coalescing(), is_whole=True).submit(request, context)

    async def SubmitStream(self, request: inference_pb2.SubmitStreamRequest, context: Any) -> None:  # type: ignore[override]
        coalescing = check_stream_options(request.stream)
        await self._call(coalescing, is_whole=False).stream(request.request, context)

    def _call(self, coalescing: Coalescing, *, is_whole: bool) -> Call:
        return Call(
            submission=self._submission,
            calls=self._calls,
            tenant=current_tenant(),
            coalescing=coalescing,
            max_bytes=self._max_response_bytes if is_whole else self._sessions.max_stream_bytes,
            is_whole=is_whole,
        )

    async def Session(self, request_iterator: AsyncIterator[session_pb2.SessionRequest], context: Any) -> None:  # type: ignore[override]
        session = Session(
            submission=self._submission,
            link=self._link,
            calls=self._calls,
            settings=self._sessions,
            tenant=current_tenant(),
        )
        await session.run(request_iterator, context)

    async def Attach(self, request: inference_pb2.AttachRequest, context: Any) -> None:  # type: ignore[override]
        message = "Attach is not available in this release: a broken stream ends its requests, submit them again"
        raise Unsupported(message, reason="FEATURE_DISABLED", metadata={"feature": "Attach"})

    async def Cancel(self, request: inference_pb2.CancelRequest, context: Any) -> inference_pb2.CancelResponse:
        _check_cancel(request)
        tenant, wanted = current_tenant(), list(request.request_ids)
        found = {request_id: self._submission.cancel_preparing(tenant, request_id) for request_id in wanted}
        elsewhere = [request_id for request_id, is_here in found.items() if not is_here]
        if elsewhere:
            await self._link.wait_until_up(self._grace_s)
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                answers = await self._link.cancel_by_id(tenant, elsewhere)
            found.update(zip(elsewhere, answers, strict=True))
        if not any(found.values()):
            message = "no running request has any of these ids: it never was, or has ended"
            raise NotFound(message, reason="REQUEST_NOT_FOUND")
        response = inference_pb2.CancelResponse()
        for request_id in wanted:
            outcome = inference_pb2.CANCEL_OUTCOME_CANCELLED if found[request_id] else _UNKNOWN
            response.results.add(request_id=request_id, outcome=outcome)
        return response


_UNKNOWN: Final = inference_pb2.CANCEL_OUTCOME_UNKNOWN_REQUEST


def _check_cancel(request: inference_pb2.CancelRequest) -> None:
    found = Violations()
    if not request.request_ids:
        found.add("request_ids", f"is empty, must have 1 to {_MAX_CANCELS} entries")
    if found.at_most("request_ids", request.request_ids, _MAX_CANCELS):
        for index, request_id in enumerate(request.request_ids):
            if not ids.is_request_id(request_id):
                found.add(f"request_ids[{index}]", "must have 1 to 128 visible ASCII characters")
    found.raise_if_any()
