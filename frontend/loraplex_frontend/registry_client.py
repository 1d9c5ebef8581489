"""The registry, which lives in the scheduler, as this frontend calls it. Its errors come out as they went in."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any, Final

import grpc
from grpc_status import rpc_status

from loraplex.worker.v1 import registry_pb2, registry_pb2_grpc
from loraplex_contract import status
from loraplex_contract.errors import DeadlineExceeded, Internal, LoraplexError, Unavailable

_TIMEOUT_S: Final = 30.0
_REMOVE_TIMEOUT_S: Final = 600.0


class RegistryClient:
    """One method for each of RegistryService's.

    Every method raises the LoraplexError that the scheduler answered with, and Unavailable (SCHEDULER_AWAY) if it
    could not be reached.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)

    async def begin(self, request: registry_pb2.BeginRegistrationRequest) -> registry_pb2.BeginRegistrationResponse:
        """To be called before the store is looked at, and with every state that the registration comes to."""
        async with relayed_errors():
            response: registry_pb2.BeginRegistrationResponse = await self._stub.BeginRegistration(
                request, timeout=_TIMEOUT_S
            )
        return response

    async def update(self, request: registry_pb2.UpdateEntryRequest) -> registry_pb2.RegistryEntry:
        async with relayed_errors():
            response = await self._stub.UpdateEntry(request, timeout=_TIMEOUT_S)
        entry: registry_pb2.RegistryEntry = response.entry
        return entry

    async def watch(
        self, request: registry_pb2.WatchEntriesRequest
    ) -> AsyncGenerator[registry_pb2.WatchEntriesResponse, None]:
        """Until the caller stops; close the iterator then."""
        call = self._stub.WatchEntries(request)
        try:
            async with relayed_errors():
                while (response := await call.read()) is not grpc.aio.EOF:
                    yield response
        finally:
            call.cancel()

    async def claim_garbage(self, digests: Iterable[str] = ()) -> registry_pb2.ClaimGarbageResponse:
        async with relayed_errors():
            request = registry_pb2.ClaimGarbageRequest(digests=digests)
            response: registry_pb2.ClaimGarbageResponse = await self._stub.ClaimGarbage(request, timeout=_TIMEOUT_S)
        return response

    async def confirm_deleted(self, claim: int, digests: Iterable[str]) -> None:
        async with relayed_errors():
            request = registry_pb2.ConfirmDeletedRequest(claim=claim, digests=digests)
            await self._stub.ConfirmDeleted(request, timeout=_TIMEOUT_S)

    async def commit(self, request: registry_pb2.CommitVersionRequest) -> registry_pb2.RegistryEntry:
        async with relayed_errors():
            response = await self._stub.CommitVersion(request, timeout=_TIMEOUT_S)
        entry: registry_pb2.RegistryEntry = response.entry
        return entry

    async def read(self, tenant: str, name: str) -> registry_pb2.RegistryEntry:
        async with relayed_errors():
            request = registry_pb2.ReadEntryRequest(tenant=tenant, name=name)
            response = await self._stub.ReadEntry(request, timeout=_TIMEOUT_S)
        entry: registry_pb2.RegistryEntry = response.entry
        return entry

    async def list(self, request: registry_pb2.ListEntriesRequest) -> registry_pb2.ListEntriesResponse:
        async with relayed_errors():
            response: registry_pb2.ListEntriesResponse = await self._stub.ListEntries(request, timeout=_TIMEOUT_S)
        return response

    async def remove(
        self, request: registry_pb2.RemoveEntryRequest, time_left_s: float | None
    ) -> registry_pb2.RemoveEntryResponse:
        """Waits until every worker has freed the bytes, at most as long as the caller does."""
        timeout_s = min(_REMOVE_TIMEOUT_S, time_left_s) if time_left_s is not None else _REMOVE_TIMEOUT_S
        async with relayed_errors():
            response: registry_pb2.RemoveEntryResponse = await self._stub.RemoveEntry(request, timeout=timeout_s)
        return response

    async def cluster(self) -> registry_pb2.ReadClusterResponse:
        async with relayed_errors():
            response: registry_pb2.ReadClusterResponse = await self._stub.ReadCluster(
                registry_pb2.ReadClusterRequest(), timeout=_TIMEOUT_S
            )
        return response


@contextlib.asynccontextmanager
async def relayed_errors() -> AsyncIterator[None]:
    """The scheduler's own errors pass; what the transport adds is told apart."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _error_of(error) from None


def _error_of(error: grpc.aio.AioRpcError) -> LoraplexError:
    rich = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know only the blocking call
    if rich is not None:
        return status.error_from_status(rich)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            message = "the scheduler is away: try again"
            return Unavailable(message, reason="SCHEDULER_AWAY", retry_delay_s=1.0)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the scheduler did not answer in time")
        case code:
            return Internal(f"the scheduler answered {code.name} without a reason")
