"""The scheduler as a pure state machine: events and the time go in, commands come out. No clock, no socket."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from loraplex_contract.errors import FailedPrecondition, Internal, Unavailable
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.account import Accounts
from loraplex_scheduler.core.batcher import Batcher
from loraplex_scheduler.core.capacity import Capacity
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.command import CancelAnswered, Command, FenceWorker, SetBudget
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.endings import Endings
from loraplex_scheduler.core.estimator import Estimator
from loraplex_scheduler.core.event import Event, RequestKey
from loraplex_scheduler.core.fair_share import FairShare
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.intake import Intake, deadline_exceeded, no_workers, queue_timeout
from loraplex_scheduler.core.invariants import check_all
from loraplex_scheduler.core.lifecycle import State
from loraplex_scheduler.core.loader import Loader, Wake
from loraplex_scheduler.core.placement import Placement
from loraplex_scheduler.core.policies import make_policy
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.prefix_affinity import PrefixAffinity
from loraplex_scheduler.core.reports import Reports, WorkerFault, reason_of_max_tokens
from loraplex_scheduler.core.request import Request, Sequence
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.residency import Tier
from loraplex_scheduler.core.service_level import ServiceLevel
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.statistics import CoreStatistics, snapshot
from loraplex_scheduler.core.timers import Due, Timers
from loraplex_scheduler.core.unregistering import Unregistering
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


class SchedulerCore:
    """Owns every request from its acceptance to its terminal, and the books of every worker.

    Args:
        policy: whose turn it is; by default the one that ``config`` names.
    """

    def __init__(self, config: CoreConfig, policy: Policy | None = None) -> None:
        self.config: Final = config
        self._commands: list[Command] = []
        self._frontends: dict[str, str] = {}
        """Connected ones, with their incarnation."""
        self._workers: dict[str, Worker] = {}
        self._requests: Final = RequestTable()
        self._timers: Final = Timers()
        self._catalog: Final = Catalog()
        self._capacity: Final = Capacity(self._catalog, max_adapters_per_step=config.max_adapters_per_step)
        policy = policy or make_policy(config.policy, config)
        self._policy: Final = policy
        self._accounts: Final = Accounts(
            lambda tenant: config.tenant_weights.get(tenant, 1.0), burst=config.fairness_burst
        )
        self._estimator: Final = Estimator()
        self._fair_share: Final = FairShare(config)
        self._affinity: Final = PrefixAffinity(config)
        self._placement: Final = Placement(config, self._workers, self._affinity)
        self._room: Final = WaitingRoom(
            config, policy, accounts=self._accounts, placement=self._placement, workers=self._workers
        )
        emit = self._emit
        self._loader: Final = Loader(
            config,
            self._catalog,
            emit,
            moved=self._room.moved,
            right_of=self._room.right_of,
            loaded=self._estimator.loaded,
        )
        self._service_level: Final = ServiceLevel(
            config,
            policy.rules,
            estimator=self._estimator,
            accounts=self._accounts,
            room=self._room,
            loader=self._loader,
            workers=self._workers,
        )
        self._standing: Final = Standing(
            config,
            policy,
            room=self._room,
            workers=self._workers,
            estimator=self._estimator,
            fair_share=self._fair_share,
            affinity=self._affinity,
            emit=emit,
        )
        self._endings: Final = Endings(
            requests=self._requests,
            standing=self._standing,
            catalog=self._catalog,
            accounts=self._accounts,
            emit=emit,
        )
        self._reports: Final = Reports(
            config,
            standing=self._standing,
            endings=self._endings,
            estimator=self._estimator,
            fair_share=self._fair_share,
            emit=emit,
        )
        self._intake: Final = Intake(
            config,
            requests=self._requests,
            room=self._room,
            timers=self._timers,
            catalog=self._catalog,
            capacity=self._capacity,
            workers=self._workers,
            accounts=self._accounts,
            service_level=self._service_level,
            emit=emit,
        )
        self._unregistering: Final = Unregistering(
            catalog=self._catalog,
            requests=self._requests,
            endings=self._endings,
            loader=self._loader,
            workers=self._workers,
            emit=emit,
        )
        self._batcher: Final = Batcher(
            config,
            policy,
            room=self._room,
            placement=self._placement,
            workers=self._workers,
            standing=self._standing,
            loader=self._loader,
            fair_share=self._fair_share,
            give_up=lambda sequence, error: self._endings.fail(sequence, error, now_ns=self._now_ns),
            lateness=lambda sequence: self._service_level.lateness(sequence, now_ns=self._now_ns),
        )
        self._now_ns = 0
        self._workers_changed_ns: int | None = None
        """When a worker last came or went; the first event at the latest."""
        self._is_dirty = False
        """Whether the batches need another look."""
        self._handlers: Final[dict[type[Any], Callable[[Any], None]]] = {
            events.FrontendConnected: self._on_frontend_connected,
            events.FrontendLost: self._on_frontend_lost,
            events.Submitted: self._on_submitted,
            events.CancelRequested: self._on_cancel,
            events.SequenceStopped: self._on_stopped,
            events.WorkerConnected: self._on_worker_connected,
            events.WorkerLost: self._on_worker_lost,
            events.StepReported: self._on_report,
            events.AdapterChanged: self._on_adapter_changed,
            events.CommandRefused: self._on_refused,
            events.AdapterCommitted: self._on_committed,
            events.AdapterUnregistered: self._on_unregistered,
            events.Tick: self._on_tick,
        }

    def handle(self, event: Event, *, now_ns: int) -> list[Command]:
        """What is to be done about one event."""
        return self.handle_all((event,), now_ns=now_ns)

    def handle_all(self, turn: Iterable[Event], *, now_ns: int) -> list[Command]:
        """What is to be done about all that has happened since the last turn; batches are formed once, at the end.

        Args:
            turn: in the order in which it happened.
            now_ns: never smaller than before.
        """
        assert now_ns >= self._now_ns, f"time ran backwards: {now_ns} after {self._now_ns}"
        self._now_ns = now_ns
        if self._workers_changed_ns is None:
            self._workers_changed_ns = now_ns
        for event in turn:
            self._handlers[type(event)](event)
        if self._is_dirty:
            self._is_dirty = False
            self._batcher.run(now_ns=now_ns)
            self._unregistering.settle(now_ns=now_ns)
        commands, self._commands = self._commands, []
        return commands

    def next_timer_ns(self) -> int | None:
        """When a Tick is due because of a deadline or a backoff; None for no such time."""
        times = (self._timers.next_ns(), self._loader.next_alarm_ns(), self._room.next_alarm_ns())
        return min((time for time in times if time is not None), default=None)

    def has_request(self, key: RequestKey) -> bool:
        return self._requests.get(key) is not None

    @property
    def is_idle(self) -> bool:
        """Whether no request lives."""
        return not len(self._requests)

    def _emit(self, command: Command) -> None:
        self._commands.append(command)

    # --- frontends ---

    def _on_frontend_connected(self, event: events.FrontendConnected) -> None:
        self._drop_frontend(event.frontend_id)
        self._frontends[event.frontend_id] = event.incarnation

    def _on_frontend_lost(self, event: events.FrontendLost) -> None:
        if self._frontends.get(event.frontend_id) == event.incarnation:
            self._drop_frontend(event.frontend_id)

    def _drop_frontend(self, frontend_id: str) -> None:
        if self._frontends.pop(frontend_id, None) is None:
            return
        for request in self._requests:
            if request.key.frontend_id == frontend_id:
                self._endings.drop(request, now_ns=self._now_ns)
        self._is_dirty = True

    def _on_submitted(self, event: events.Submitted) -> None:
        if event.key.frontend_id in self._frontends and not self.has_request(event.key):
            is_without_workers = not self._workers and self._is_grace_over()
            self._intake.submit(event, is_without_workers=is_without_workers, now_ns=self._now_ns)
            self._is_dirty = True

    def _on_cancel(self, event: events.CancelRequested) -> None:
        if event.key is not None:
            request = self._requests.get(event.key)
        else:
            request = self._requests.with_id(event.tenant, event.request_id)
        if request is not None:
            self._endings.finish_all(request, FinishReason.CANCELLED, now_ns=self._now_ns)
            self._is_dirty = True
        if event.nonce and event.frontend_id in self._frontends:
            self._emit(CancelAnswered(frontend_id=event.frontend_id, nonce=event.nonce, found=request is not None))

    def _on_stopped(self, event: events.SequenceStopped) -> None:
        request = self._requests.get(event.key)
        if request is None or event.index >= len(request.sequences):
            return
        sequence = request.sequences[event.index]
        if sequence.state is not State.DONE:
            self._endings.finish(
                sequence,
                FinishReason.STOP_STRING,
                now_ns=self._now_ns,
                num_output_tokens=min(event.num_tokens, sequence.num_output),
            )
            self._is_dirty = True

    # --- workers ---

    def _on_worker_connected(self, event: events.WorkerConnected) -> None:
        worker_id = event.info.worker_id
        if worker_id in self._workers:
            self._lose(self._workers[worker_id])
        self._workers[worker_id] = Worker(event.info, self._room.waited)
        self._affinity.add_worker(self._workers[worker_id])
        self._workers_changed_ns = self._now_ns
        if 0 < self.config.max_step_tokens < event.info.max_step_tokens:
            self._workers[worker_id].max_step_tokens = self.config.max_step_tokens
            self._emit(
                SetBudget(worker_id=worker_id, epoch=event.info.epoch, max_step_tokens=self.config.max_step_tokens)
            )
        self._settle_places()
        self._is_dirty = True

    def _settle_places(self) -> None:
        """Where each request can run has changed. One that never had a place is told why it gets none."""
        self._fair_share.num_slots = sum(worker.info.max_sequences for worker in self._workers.values())
        for request in self._requests:
            error = self._capacity.settle(request, self._workers.values())
            if error is not None and (request.places or not request.had_places):
                self._endings.fail_all(request, error, now_ns=self._now_ns)
        self._room.rebuild()

    def _on_worker_lost(self, event: events.WorkerLost) -> None:
        worker = self._worker(event.worker_id, event.epoch)
        if worker is not None:
            self._lose(worker)

    def _worker(self, worker_id: str, epoch: int) -> Worker | None:
        """The registration that an event is about, unless it is over."""
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.info.epoch == epoch else None

    def _lose(self, worker: Worker) -> None:
        lost = self._standing.lose(worker, now_ns=self._now_ns)
        del self._workers[worker.worker_id]
        self._affinity.forget_worker(worker.worker_id)
        self._workers_changed_ns = self._now_ns
        for sequence in lost:
            if sequence.num_output >= sequence.max_tokens:
                self._endings.finish(sequence, reason_of_max_tokens(sequence), now_ns=self._now_ns)
        for request in {sequence.request.arrival: sequence.request for sequence in lost if sequence.is_fresh}.values():
            self._count_loss(request)
        self._settle_places()
        self._is_dirty = True

    def _count_loss(self, request: Request) -> None:
        """A worker died under it before it had one more token to show: it may be the cause."""
        request.num_worker_losses += 1
        if request.num_worker_losses >= self.config.max_worker_losses and request.num_unfinished:
            message = (
                f"{request.num_worker_losses} workers were lost right after they took this request: "
                "it is stopped, so that it takes no more"
            )
            metadata = {"workers": str(request.num_worker_losses)}
            error = FailedPrecondition(message, reason="REQUEST_POISONED", metadata=metadata)
            self._endings.fail_all(request, error, now_ns=self._now_ns)

    def _fence(self, worker: Worker, cause: str) -> None:
        """Its books and ours differ: nothing that it says can be trusted any more."""
        self._emit(FenceWorker(worker_id=worker.worker_id, epoch=worker.info.epoch, cause=cause))
        self._lose(worker)

    def _on_report(self, event: events.StepReported) -> None:
        worker = self._worker(event.worker_id, event.epoch)
        if worker is None:
            return
        try:
            if self._reports.take(worker, event, now_ns=self._now_ns):
                self._is_dirty = worker.needs_look = True
        except WorkerFault as fault:
            self._fence(worker, str(fault))

    def _on_adapter_changed(self, event: events.AdapterChanged) -> None:
        worker = self._worker(event.worker_id, event.epoch)
        if worker is None:
            return
        self._is_dirty = worker.needs_look = True
        match event.state:
            case events.WorkerAdapterState.DEVICE:
                self._loader.on_device(worker, event.digest, now_ns=self._now_ns)
            case events.WorkerAdapterState.EVICTED:
                if not self._loader.on_evicted(worker, event.digest):
                    self._fence(worker, f"adapter {event.digest} left the device while in use")
            case events.WorkerAdapterState.FAILED:
                if self._loader.on_failed(worker, event.digest, event.error, now_ns=self._now_ns):
                    self._batcher.fail_waiting(event.digest, now_ns=self._now_ns)

    def _on_refused(self, event: events.CommandRefused) -> None:
        worker = self._worker(event.worker_id, event.epoch)
        if worker is None:
            return
        self._is_dirty = worker.needs_look = True
        sequence = worker.sequences.get(event.sequence_id or 0)
        if sequence is None:
            self._on_adapter_refused(worker, event)
        elif event.reason == "FIELD_INVALID":
            error = Internal("the worker refused the request as malformed", reason="COMMAND_REFUSED")
            self._endings.fail(sequence, error, now_ns=self._now_ns)
        else:
            self._take_back(worker, sequence, event.reason)

    def _take_back(self, worker: Worker, sequence: Sequence, reason: str) -> None:
        """It is tried again, there or elsewhere; a worker that goes on refusing keeps other books than we do."""
        worker.num_refusals += 1
        if worker.num_refusals >= self.config.max_refusals:
            self._fence(worker, f"refused {worker.num_refusals} commands, the last for want of {reason}")
        else:
            self._standing.preempt(sequence, now_ns=self._now_ns)

    def _on_adapter_refused(self, worker: Worker, event: events.CommandRefused) -> None:
        match worker.residency.tier(event.digest):
            case Tier.EVICTING:
                self._loader.on_eviction_refused(worker, event.digest, now_ns=self._now_ns)
            case Tier.LOADING:
                error = Unavailable(
                    f"the worker could not take the adapter: {event.reason}", reason="ADAPTER_LOAD_FAILED"
                )
                if self._loader.on_failed(worker, event.digest, error, now_ns=self._now_ns):
                    self._batcher.fail_waiting(event.digest, now_ns=self._now_ns)

    # --- adapters ---

    def _on_committed(self, event: events.AdapterCommitted) -> None:
        self._catalog.commit(event.tenant, event.name, event.number, event.digest, event.num_parameters)

    def _on_unregistered(self, event: events.AdapterUnregistered) -> None:
        self._unregistering.begin(event, now_ns=self._now_ns)
        self._is_dirty = True

    # --- time ---

    def _on_tick(self, _: events.Tick) -> None:
        for due, arrival, key in self._timers.pop_due(self._now_ns):
            request = self._requests.get(key)
            if request is not None and request.arrival == arrival:
                self._on_due(due, request)
        if len(self._timers) > 64 + 4 * len(self._requests):
            self._timers.forget_ended({request.arrival for request in self._requests})
        for wake in self._loader.due(now_ns=self._now_ns):
            self._on_wake(wake)
        self._room.consider_replicas(now_ns=self._now_ns)
        if len(self._room):
            self._give_up_the_homeless()
            for worker in self._workers.values():
                worker.needs_look = True
            self._is_dirty = True

    def _on_wake(self, wake: Wake) -> None:
        worker = self._worker(wake.worker_id, wake.epoch)
        if worker is None:
            return
        if self._loader.is_stuck(worker, wake.digest, now_ns=self._now_ns):
            self._fence(worker, "a load or an eviction was never answered")
        else:
            self._loader.allow_again(worker, wake.digest, now_ns=self._now_ns)
            self._is_dirty = True

    def _on_due(self, due: Due, request: Request) -> None:
        self._is_dirty = True
        match due:
            case Due.TIME_LIMIT:
                self._endings.finish_all(request, FinishReason.TIME_LIMIT, now_ns=self._now_ns)
            case Due.DEADLINE:
                for sequence in request.unfinished():
                    self._endings.fail(sequence, deadline_exceeded(sequence.num_output), now_ns=self._now_ns)
            case Due.QUEUE_DEADLINE:
                for sequence in request.unfinished():
                    if sequence.admitted_ns is None:
                        self._endings.fail(sequence, queue_timeout(), now_ns=self._now_ns)
            case Due.FIRST_TOKEN:
                self._end_late(request)

    def _end_late(self, request: Request) -> None:
        """One that waits will not make it; one that runs has cost its prefill already."""
        for sequence in request.unfinished():
            if sequence.state is State.QUEUED:
                error = self._service_level.lateness(sequence, now_ns=self._now_ns + 1)
                if error is not None:
                    self._endings.fail(sequence, error, now_ns=self._now_ns)

    def _is_grace_over(self) -> bool:
        assert self._workers_changed_ns is not None
        return self._now_ns - self._workers_changed_ns >= self.config.no_worker_grace_ns

    def _give_up_the_homeless(self) -> None:
        """No worker that they fit on has come back in time."""
        if self._is_grace_over():
            for sequence in self._room.homeless():
                self._endings.fail(sequence, no_workers(self.config), now_ns=self._now_ns)

    # --- what it shows ---

    def statistics(self) -> CoreStatistics:
        return snapshot(requests=self._requests, room=self._room, catalog=self._catalog, workers=self._workers.values())

    def check(self) -> None:
        """Assert every invariant. O(everything): for tests, and for a server that has nothing to do."""
        check_all(requests=self._requests, room=self._room, catalog=self._catalog, workers=self._workers.values())
