"""One run: a core, virtual workers and virtual clients in virtual time."""

import functools
from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.policy import Policy
from loraplex_scheduler.core.statistics import CoreStatistics
from loraplex_scheduler.simulation.event_heap import EventHeap
from loraplex_scheduler.simulation.service_meter import OUTPUT_WEIGHT, PROMPT_WEIGHT, ServiceMeter
from loraplex_scheduler.simulation.timeline import Timeline
from loraplex_scheduler.simulation.virtual_clients import FRONTEND, VirtualClients
from loraplex_scheduler.simulation.virtual_worker import VirtualWorker
from loraplex_scheduler.simulation.workload import SECOND_NS, Workload

TICK_NS: Final = SECOND_NS // 20
"""Time passes for the core at least so often, as in the real scheduler."""
NUM_SAMPLES: Final = 400
"""Of the window in which requests come."""
MIN_SAMPLE_NS: Final = SECOND_NS // 10
"""Between samples: a workload that comes all at once has a window of no length."""
PATIENCE_NS: Final = 120 * SECOND_NS
"""Without an arrival, a token or an end for so long, with requests in the core: nobody will ever be served."""


class Simulation:
    """Runs a workload to its end. The same arguments give the same history.

    Args:
        check_every: turns between checks of every invariant; 0 = none.
    """

    def __init__(self, workload: Workload, config: CoreConfig, policy: Policy, *, check_every: int = 0) -> None:
        self.workload: Final = workload
        self.core: Final = SchedulerCore(config, policy)
        self.clients: Final = VirtualClients(workload)
        self.meter: Final = ServiceMeter(workload.tenants)
        self.timeline: Final = Timeline()
        self.num_turns = 0
        self.num_tokens = 0
        self.num_adapter_requests = 0
        self.num_adapter_hits = 0
        """Requests whose adapter was on a worker when they came."""
        self._check_every: Final = check_every
        self._heap: Final = EventHeap()
        self._turn: list[events.Event] = []
        self._moved_ns = 0
        self._timer_ns = 0
        """Of the last deadline that has a Tick."""
        self.is_starved = False
        """Whether it came to a stop with requests in the core, which were then cancelled."""
        ranks = {_digest(tenant, name): workload.ranks[name] for tenant, name in workload.registrations()}
        self.workers: Final = {
            worker_id: VirtualWorker(
                workload.preset.worker_info(worker_id, epoch),
                workload.preset,
                ranks,
                self._heap,
                self._deliver_later,
            )
            for epoch, worker_id in enumerate((f"w{number}" for number in range(workload.num_workers)), start=1)
        }

    @property
    def now_ns(self) -> int:
        return self._heap.now_ns

    def run(self, progress: Callable[[float], None] = lambda part: None) -> None:
        """Args:
        progress: told now and then which part of the requests is over.
        """
        self._begin()
        while self.clients.num_open or not self.core.is_idle:
            self._heap.advance()
            if self._turn:
                self._take_turn()
            if self._heap.now_ns - self._moved_ns > PATIENCE_NS:
                self._give_up_waiting()
            if self.num_turns % 2048 == 0:
                progress(1 - self.clients.num_open / len(self.clients.requests))
        self._check()
        progress(1.0)

    def _give_up_waiting(self) -> None:
        self._moved_ns = self._heap.now_ns
        if not self.core.is_idle:
            self.is_starved = True
            self._cancel_open()

    def statistics(self) -> CoreStatistics:
        return self.core.statistics()

    def _begin(self) -> None:
        self._turn.append(events.FrontendConnected(frontend_id=FRONTEND, incarnation="1"))
        self._turn += [events.WorkerConnected(info=worker.info) for worker in self.workers.values()]
        self._turn += [self._commit(tenant, name) for tenant, name in self.workload.registrations()]
        self._take_turn()
        for number, arrival in enumerate(self.workload.arrivals):
            self._heap.at(arrival.time_ns, functools.partial(self._arrive, number))
        if self.workload.horizon_ns is not None:
            self._heap.at(self.workload.horizon_ns, self._cancel_open)
        self._heap.at(0, self._sample)
        self._heap.at(TICK_NS, self._tick)

    def _commit(self, tenant: str, name: str) -> events.AdapterCommitted:
        num_parameters = self.workload.preset.num_parameters(self.workload.ranks[name])
        digest = _digest(tenant, name)
        return events.AdapterCommitted(tenant=tenant, name=name, number=1, digest=digest, num_parameters=num_parameters)

    # --- what happens in virtual time ---

    def _arrive(self, number: int) -> None:
        request = self.clients.requests[number].arrival
        if request.adapter is not None:
            digest = _digest(request.tenant, request.adapter)
            self.num_adapter_requests += 1
            self.num_adapter_hits += any(worker.has_adapter(digest) for worker in self.workers.values())
        self.meter.arrived(request.tenant, num_prompt=request.num_prompt_tokens, num_output=request.num_output_tokens)
        self._moved_ns = self._heap.now_ns
        self._turn.append(self.clients.submit(number))

    def _cancel_open(self) -> None:
        self._turn += self.clients.cancel_open()

    def _tick(self) -> None:
        self._turn.append(events.Tick())
        self._heap.after(TICK_NS, self._tick)

    def _sample(self) -> None:
        if self._heap.now_ns <= self.workload.window_ns:
            self.meter.sample()
            self.timeline.window_tokens = self.num_tokens
        self.timeline.add(
            time_ns=self._heap.now_ns,
            num_waiting=self.meter.num_waiting,
            num_running=sum(worker.num_running for worker in self.workers.values()),
            num_tokens=self.num_tokens,
        )
        self._heap.after(max(MIN_SAMPLE_NS, self.workload.window_ns // NUM_SAMPLES), self._sample)

    def _deliver_later(self, event: events.Event) -> None:
        self._heap.after(self.workload.preset.link_ns, functools.partial(self._deliver, event))

    def _deliver(self, event: events.Event) -> None:
        self._turn.append(event)

    # --- turns of the core ---

    def _take_turn(self) -> None:
        self.num_turns += 1
        turn, self._turn = self._turn, []
        frames: dict[str, list[commands.WorkerCommand]] = {}
        for command in self.core.handle_all(turn, now_ns=self._heap.now_ns):
            if isinstance(command, commands.Tokens):
                self._hear_tokens(command)
            elif isinstance(command, commands.WorkerCommand):
                if isinstance(command, commands.Admit):
                    self._note_admission(command)
                frames.setdefault(command.worker_id, []).append(command)
            elif isinstance(command, commands.FrontendCommand):
                self._hear(command)
            else:
                assert not isinstance(command, commands.FenceWorker), f"a sound worker was fenced: {command}"
        for worker_id, frame in frames.items():
            receive = functools.partial(self.workers[worker_id].receive, frame)
            self._heap.after(self.workload.preset.link_ns, receive)
        self._watch_timer()
        if self._check_every and self.num_turns % self._check_every == 0:
            self._check()

    def _watch_timer(self) -> None:
        """A deadline gets one Tick of its own, to the point; one that is past waits for the next regular Tick."""
        now_ns, due_ns = self._heap.now_ns, self.core.next_timer_ns()
        if due_ns is not None and due_ns != self._timer_ns and now_ns < due_ns < now_ns + TICK_NS:
            self._timer_ns = due_ns
            self._heap.at(due_ns, functools.partial(self._deliver, events.Tick()))

    def _hear_tokens(self, tokens: commands.Tokens) -> None:
        num_tokens = len(tokens.token_ids)
        self.num_tokens += num_tokens
        self._moved_ns = self._heap.now_ns
        self.clients.hear(tokens, self._heap.now_ns)
        tenant = self.clients.requests[tokens.key.handle].arrival.tenant
        self.meter.served(tenant, OUTPUT_WEIGHT * num_tokens)

    def _note_admission(self, admit: commands.Admit) -> None:
        request = self.clients.admitted(admit.prompt_ids[0], self._heap.now_ns)
        if request is not None:
            tenant = request.arrival.tenant
            self.meter.left_queue(tenant)
            self.meter.served(tenant, PROMPT_WEIGHT * request.arrival.num_prompt_tokens)

    def _hear(self, command: commands.FrontendCommand) -> None:
        self.clients.hear(command, self._heap.now_ns)
        if isinstance(command, commands.Rejected | commands.Finished):
            self._moved_ns = self._heap.now_ns
            request = self.clients.requests[command.key.handle]
            if request.admitted_ns is None:
                self.meter.left_queue(request.arrival.tenant)

    def _check(self) -> None:
        self.core.check()
        for worker in self.workers.values():
            worker.check()


def _digest(tenant: str, name: str) -> str:
    return f"{tenant}/{name}"
