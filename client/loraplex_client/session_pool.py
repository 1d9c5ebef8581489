"""The session that a client submits on, opened when it is needed and again after it was lost."""

from collections.abc import Sequence
from typing import Final

from loraplex.v1 import generation_pb2, inference_pb2_grpc
from loraplex_client.open_request import OpenRequest
from loraplex_client.session import SESSION_DRAINING, Session
from loraplex_client.task_scope import TaskScope
from loraplex_contract.errors import LoraplexError, Unavailable

CLOSE_TIMEOUT_S: Final = 2.0
MAX_ATTEMPTS: Final = 3


class SessionPool:
    """One session at a time takes requests; one that drains goes on beside it until its requests are done."""

    def __init__(
        self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", target: str, metadata: Sequence[tuple[str, str]]
    ) -> None:
        self._stub = stub
        self._target = target
        self._metadata = metadata
        self._scope = TaskScope()
        self._current: Session | None = None

    async def open(self) -> None:
        await self._scope.open()

    async def submit(self, request: generation_pb2.SubmitRequest) -> tuple[Session, OpenRequest]:
        """Sends the request once. A session that began to drain before that is replaced.

        Raises:
            LoraplexError: what ended the session while the request waited for room.
        """
        error: LoraplexError = Unavailable(f"{self._target} drains every session", reason=SESSION_DRAINING)
        for _ in range(MAX_ATTEMPTS):
            session = self._usable()
            try:
                return session, await session.submit(request)
            except Unavailable as refused:
                error = refused
                if refused.reason != SESSION_DRAINING:
                    raise
        raise error

    def _usable(self) -> Session:
        if self._current is None or not self._current.is_usable:
            self._current = Session(self._stub, self._target, self._metadata)
            self._scope.start(self._current.run(), name="client/session")
        return self._current

    async def close(self) -> None:
        """Ends an idle session in good order, and any other at once: its requests are cancelled."""
        current, self._current = self._current, None
        if current is not None and current.is_usable and not current.num_open:
            current.finish()
            await self._scope.wait(CLOSE_TIMEOUT_S)
        await self._scope.close()
