"""Takes requests in: everything that can be refused at once is refused here, and the name becomes a lease."""

from collections.abc import Callable
from typing import Final

from loraplex_contract.errors import AlreadyExists, DeadlineExceeded, LoraplexError, ResourceExhausted, Unavailable
from loraplex_scheduler.core.account import Accounts
from loraplex_scheduler.core.capacity import Capacity
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.command import Accepted, Command, Rejected, Started
from loraplex_scheduler.core.config import SECOND_NS, CoreConfig
from loraplex_scheduler.core.event import Submitted
from loraplex_scheduler.core.request import Request
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.seed import request_seed
from loraplex_scheduler.core.service_level import ServiceLevel
from loraplex_scheduler.core.timers import Due, Timers
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


class Intake:
    """Accepts a request whole, or rejects it without a trace."""

    def __init__(
        self,
        config: CoreConfig,
        *,
        requests: RequestTable,
        room: WaitingRoom,
        timers: Timers,
        catalog: Catalog,
        capacity: Capacity,
        workers: dict[str, Worker],
        accounts: Accounts,
        service_level: ServiceLevel,
        emit: Callable[[Command], None],
    ) -> None:
        self._accounts: Final = accounts
        self._service_level: Final = service_level
        self._config: Final = config
        self._requests: Final = requests
        self._room: Final = room
        self._timers: Final = timers
        self._catalog: Final = catalog
        self._capacity: Final = capacity
        self._workers: Final = workers
        self._emit: Final = emit
        self._num_accepted = 0
        self._num_seeds = 0

    def submit(self, submitted: Submitted, *, is_without_workers: bool, now_ns: int) -> None:
        """Accepted and Started, or Rejected.

        Args:
            is_without_workers: whether there has been no worker for longer than the grace.
        """
        try:
            self._check_load(submitted, is_without_workers=is_without_workers)
            request = self._resolve(submitted, now_ns=now_ns)
        except LoraplexError as error:
            self._emit(Rejected(key=submitted.key, error=error))
            return
        self._take(request, submitted)

    def _check_load(self, submitted: Submitted, *, is_without_workers: bool) -> None:
        tenant, config = submitted.tenant, self._config
        if self._requests.with_id(tenant, submitted.request_id) is not None:
            message = f"request_id: {submitted.request_id!r} is running already: choose another, or wait for its end"
            raise AlreadyExists(message, reason="REQUEST_ID_REUSED")
        if is_without_workers:
            raise no_workers(config)
        if self._requests.num_inflight(tenant) >= config.max_inflight_per_tenant:
            message = (
                f"this tenant has {config.max_inflight_per_tenant} requests in flight, the most allowed: wait for one"
            )
            raise ResourceExhausted(message, reason="TENANT_QUOTA", retry_delay_s=1.0)
        num_waiting = self._room.num_new_requests
        if num_waiting >= config.max_queued_requests:
            message = f"{num_waiting} requests are waiting, the most allowed is {config.max_queued_requests}: try later"
            raise ResourceExhausted(message, reason="QUEUE_FULL", retry_delay_s=1.0)

    def _resolve(self, submitted: Submitted, *, now_ns: int) -> Request:
        adapters = self._catalog.resolve(submitted.tenant, submitted.adapters)
        for due_ns in (submitted.deadline_ns, submitted.queue_deadline_ns):
            if due_ns is not None and due_ns <= now_ns:
                raise deadline_exceeded(0)
        seed = submitted.sampling.seed
        if seed is None:
            self._num_seeds += 1
            seed = request_seed(self._config.seed_salt, self._num_seeds)
        account = self._accounts.enter(submitted.tenant, tuple(part.digest for part in adapters))
        request = Request(submitted, adapters, account=account, seed=seed, arrival=self._num_accepted, now_ns=now_ns)
        error = self._capacity.settle(request, self._workers.values())
        error = error or self._service_level.refusal(request, now_ns=now_ns)
        if error is not None:
            self._accounts.leave(account)
            raise error
        return request

    def _take(self, request: Request, submitted: Submitted) -> None:
        num_waiting = self._room.num_new_requests
        self._num_accepted += 1
        self._catalog.lease(request.tenant, request.adapters)
        self._requests.add(request)
        for sequence in request.sequences:
            self._room.add(sequence)
        for when_ns, due in (
            (submitted.time_limit_ns, Due.TIME_LIMIT),
            (submitted.deadline_ns, Due.DEADLINE),
            (submitted.queue_deadline_ns, Due.QUEUE_DEADLINE),
            (submitted.first_token_deadline_ns, Due.FIRST_TOKEN),
        ):
            if when_ns is not None:
                self._timers.add(when_ns, due, request.arrival, request.key)
        self._emit(Accepted(key=request.key, request_id=request.request_id, queue_position=num_waiting))
        self._emit(Started(key=request.key, adapters=request.adapters, seed=request.seed))


def deadline_exceeded(num_output_tokens: int) -> DeadlineExceeded:
    message = "the request's deadline passed before its end: give it more time, or ask for fewer tokens"
    return DeadlineExceeded(message, reason="DEADLINE", metadata={"tokensProduced": str(num_output_tokens)})


def queue_timeout() -> DeadlineExceeded:
    message = "the request was not admitted into a batch within its queue_timeout: try again, or allow it more"
    return DeadlineExceeded(message, reason="QUEUE_TIMEOUT")


def no_workers(config: CoreConfig) -> Unavailable:
    grace_s = config.no_worker_grace_ns / SECOND_NS
    message = f"no worker has been connected for {grace_s:g} s: try again later"
    return Unavailable(message, reason="NO_WORKERS", retry_delay_s=max(1.0, grace_s))
