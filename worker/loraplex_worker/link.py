"""The worker's one connection: dials the scheduler, serves it, and dials again when it is lost."""

import asyncio
import time
import uuid
from typing import Any, Final

import grpc
import structlog

from loraplex.worker.v1 import worker_link_pb2, worker_link_pb2_grpc
from loraplex_contract.channel import LINK_OPTIONS
from loraplex_worker import convert
from loraplex_worker.adapter_cache import AdapterCache
from loraplex_worker.engine_port import EnginePort
from loraplex_worker.link_session import LinkLost, LinkSession, LoadObserver, Term, read_frame, write_frame
from loraplex_worker.link_state import LinkState
from loraplex_worker.registration import Registration
from loraplex_worker.settings import WorkerSettings

_LOG: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 2.0


class SchedulerLink:
    """Keeps one stream to the scheduler. Each stream is a term of its own: it begins with an empty engine."""

    def __init__(
        self,
        settings: WorkerSettings,
        registration: Registration,
        port: EnginePort,
        cache: AdapterCache,
        *,
        observer: LoadObserver | None = None,
    ) -> None:
        self._settings = settings
        self._registration = registration
        self._port = port
        self._cache = cache
        self._highest_epoch = 0
        self._backoff_s = MIN_BACKOFF_S
        self._observer = observer
        self._session: LinkSession | None = None
        self._num_losses = 0

    def state(self) -> LinkState:
        session = self._session
        return LinkState(
            is_up=session is not None,
            lease_left_s=0.0 if session is None else session.lease_left_s,
            num_waiting_frames=0 if session is None else session.num_waiting_frames,
            num_losses=self._num_losses,
        )

    async def run(self, leave: asyncio.Event) -> None:
        """Serves until ``leave`` is set; then says Leave, if a scheduler is there, and returns.

        Raises:
            EngineFailed: the step thread is over.
        """
        while not leave.is_set():
            try:
                await self._serve(leave)
            except* LinkLost as group:
                self._num_losses += 1
                _LOG.warning("scheduler_lost", why=str(_first(group)), retry_s=self._backoff_s)
                await self._wait(leave)

    async def _serve(self, leave: asyncio.Event) -> None:
        # A channel for each stream: one that has failed keeps a backoff of its own, which would add to ours.
        async with grpc.aio.insecure_channel(self._settings.scheduler, options=LINK_OPTIONS) as channel:
            call: Any = worker_link_pb2_grpc.WorkerLinkServiceStub(channel).Serve()
            registered_s = time.monotonic()
            term = await self._register(call)
            session = LinkSession(
                call,
                term,
                self._port,
                self._cache,
                registered_s=registered_s,
                page_bytes=self._registration.page_bytes,
                load_timeout_s=self._settings.load_timeout_s,
                observer=self._observer,
            )
            _LOG.info("registered", epoch=term.epoch, scheduler=self._settings.scheduler)
            self._backoff_s = MIN_BACKOFF_S
            self._session = session
            try:
                await session.run(leave, leave_timeout_s=self._settings.leave_timeout_s)
            except* LinkLost:
                await session.end()
                raise
            finally:
                self._session = None

    async def _register(self, call: Any) -> Term:
        # A new incarnation for each stream: this worker holds nothing any more of what an earlier one was told.
        register = convert.registration_to_pb(self._registration, incarnation=uuid.uuid4().hex)
        try:
            async with asyncio.timeout(self._settings.register_timeout_s):
                await write_frame(call, worker_link_pb2.ServeRequest(register=register))
                frame = await read_frame(call)
        except TimeoutError:
            raise LinkLost(f"Register was not answered in {self._settings.register_timeout_s} s") from None
        if frame.WhichOneof("frame") != "registered":
            raise LinkLost(f"the scheduler's first frame is {frame.WhichOneof('frame')}, not Registered")
        return self._accept(Term.from_pb(frame.registered))

    def _accept(self, term: Term) -> Term:
        if term.epoch < self._highest_epoch:
            raise LinkLost(f"epoch {term.epoch} is over: {self._highest_epoch} has begun")
        self._highest_epoch = term.epoch
        return term

    async def _wait(self, leave: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._backoff_s):
                await leave.wait()
        except TimeoutError:
            self._backoff_s = min(MAX_BACKOFF_S, self._backoff_s * 2)


def _first(group: BaseExceptionGroup[LinkLost]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
