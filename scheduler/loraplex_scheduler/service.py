"""The two streaming services, at the edge of gRPC. Their methods write to the context instead of yielding."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

from loraplex.worker.v1 import frontend_link_pb2, frontend_link_pb2_grpc, worker_link_pb2, worker_link_pb2_grpc
from loraplex_contract.errors import InvalidArgument
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.frontend_session import FrontendSession
from loraplex_scheduler.model_agreement import ModelAgreement
from loraplex_scheduler.settings import SchedulerSettings
from loraplex_scheduler.worker_session import WorkerSession

EPOCHS_PER_TERM = 1 << 24


class FrontendLink(frontend_link_pb2_grpc.FrontendLinkServiceServicer):
    def __init__(
        self, dispatcher: Dispatcher, settings: SchedulerSettings, models: ModelAgreement, *, term: int
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._models = models
        self._term = term

    async def Link(self, request_iterator: AsyncIterator[frontend_link_pb2.LinkRequest], context: Any) -> None:  # type: ignore[override]
        session = FrontendSession(
            self._dispatcher,
            self._models,
            epoch=self._term,
            heartbeat_s=self._settings.heartbeat_s,
            max_frames=self._settings.max_peer_frames,
        )
        await session.run(request_iterator, context)


class WorkerLink(worker_link_pb2_grpc.WorkerLinkServiceServicer):
    """Epochs grow over restarts of the scheduler too: the term is their upper part."""

    def __init__(
        self, dispatcher: Dispatcher, settings: SchedulerSettings, models: ModelAgreement, *, term: int
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._models = models
        self._epochs = itertools.count(term * EPOCHS_PER_TERM)

    async def Serve(self, request_iterator: AsyncIterator[worker_link_pb2.ServeRequest], context: Any) -> None:  # type: ignore[override]
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("register"):
            raise InvalidArgument("the first frame must be Register", reason="PROTOCOL_VIOLATION")
        self._models.check(first.register.model_fingerprint)
        session = WorkerSession(
            self._dispatcher,
            first.register,
            epoch=next(self._epochs),
            heartbeat_s=self._settings.heartbeat_s,
            lease_ttl_s=self._settings.lease_ttl_s,
            stall_s=self._settings.stall_s,
            max_frames=self._settings.max_peer_frames,
        )
        await session.run(request_iterator, context)
