"""The scheduler's core between model workers, frontends and a registry, all driven by Hypothesis in every order.

Both directions of a worker's link are queues that are delivered when Hypothesis says so: commands and reports cross.
"""

import collections
import dataclasses

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loraplex_contract.errors import DataLoss, LoraplexError, Unavailable
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.config import SECOND_NS, CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.sampling import Sampling
from tests.scheduler.client_ledger import Clients
from tests.scheduler.model_worker import ModelWorker, frame_order
from tests.scheduler.overtaking_ledger import OvertakingLedger

CONFIG = CoreConfig(
    max_queued_requests=8,
    max_inflight_per_tenant=9,
    grant_tokens=6,
    grant_low_tokens=3,
    max_loads_in_flight=3,
    max_worker_losses=2,
    admission_watermark=0.05,
    load_backoff_ns=SECOND_NS // 2,
    seed_salt=7,
)
FRONTENDS = ("front-1", "front-2")
WORKERS = ("worker-1", "worker-2")
NAMES = ("a", "b", "c", "d")
TENANTS = ("red", "blue")
OUTCOMES = ("ok", "ok", "corrupt", "corrupt", "busy")


def load_error(outcome: str) -> LoraplexError | None:
    """A new object each time, as from the wire."""
    return {"ok": None, "corrupt": DataLoss("the bytes differ"), "busy": Unavailable("no room")}[outcome]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a client may ask for."""

    tenant: str
    names: tuple[str, ...]
    num_prompt: int
    max_tokens: int | None
    num_sequences: int
    priority: int
    seed: int | None
    patience_s: int | None
    kind: str
    reuses_id: bool


WISHES = st.builds(
    Wish,
    tenant=st.sampled_from(("red", "red", "red", "blue")),
    names=st.sampled_from([(), ("a",), ("b",), ("c",), ("d",), ("a", "b"), ("unknown",)]),
    num_prompt=st.sampled_from([1, 3, 4, 9, 9, 20, 20, 50]),
    max_tokens=st.sampled_from([None, 1, 7, 13, 20, 28]),
    num_sequences=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    seed=st.sampled_from([None, 1, 2]),
    patience_s=st.sampled_from([None, None, None, 1, 4]),
    kind=st.sampled_from(["deadline_ns", "queue_deadline_ns", "time_limit_ns"]),
    reuses_id=st.sampled_from([False, False, False, False, True]),
)


@dataclasses.dataclass
class Link:
    """One registration of a worker, with what is under way to and from it."""

    worker: ModelWorker
    down: collections.deque[list[commands.WorkerCommand]] = dataclasses.field(default_factory=collections.deque)
    up: collections.deque[events.Event] = dataclasses.field(default_factory=collections.deque)


def worker_info(worker_id: str, epoch: int, **changes: int) -> events.WorkerInfo:
    fields = {
        "num_pages": 20,
        "page_size": 4,
        "page_bytes": 100,
        "adapter_parameter_bytes": 2,
        "max_sequences": 4,
        "max_step_tokens": 64,
        "max_context_tokens": 48,
        "vocab_size": 1 << 16,
    }
    return events.WorkerInfo(worker_id=worker_id, epoch=epoch, device="cpu", **{**fields, **changes})


class CoreMachine(RuleBasedStateMachine):
    """Every rule is one thing that can happen; the invariants are asserted after each."""

    config = CONFIG
    workers: tuple[str, ...] = WORKERS

    def __init__(self) -> None:
        super().__init__()
        self.core = SchedulerCore(self.config)
        self.now_ns = 10 * SECOND_NS
        self.clients = Clients()
        self.links: dict[str, Link] = {}
        self.frontends: dict[str, str] = {}
        self.adapters: dict[tuple[str, str], list[str]] = {}
        """Registered names with the digests of their versions."""
        self.draining: set[tuple[str, str]] = set()
        self.outcomes: list[str] = []
        """Of the next loads; those after them go well."""
        self.num_events = 0
        self.overtaking = OvertakingLedger(self.core)

    # --- the shell's part ---

    def turn(self, *turn: events.Event) -> list[commands.Command]:
        self.overtaking.now_ns = self.now_ns
        result = self.core.handle_all(turn, now_ns=self.now_ns)
        self.clients.hear(result)
        to_workers: dict[str, list[commands.WorkerCommand]] = {}
        for command in result:
            match command:
                case commands.AdapterGone():
                    self._on_gone(command)
                case commands.VersionReleased():
                    self._on_released(command)
                case commands.FenceWorker():
                    raise AssertionError(f"fenced a worker that did nothing wrong: {command.cause}")
                case _ if isinstance(command, commands.WorkerCommand):
                    link = self.links.get(command.worker_id)
                    if link is not None and link.worker.info.epoch == command.epoch:
                        to_workers.setdefault(command.worker_id, []).append(command)
        for worker_id, own in to_workers.items():
            self.links[worker_id].down.append(own)
        return result

    def _on_gone(self, gone: commands.AdapterGone) -> None:
        key = (gone.tenant, gone.name)
        assert key in self.draining, f"{key} is gone and was never unregistered"
        self.draining.remove(key)
        del self.adapters[key]

    def _on_released(self, released: commands.VersionReleased) -> None:
        for link in self.links.values():
            assert released.digest not in link.worker.adapters, "released while a worker holds it"
            assert released.digest not in link.worker.loading, "released while a worker loads it"

    def new_number(self) -> int:
        self.num_events += 1
        return self.num_events

    @initialize(sizes=st.lists(st.sampled_from([40, 200, 250]), min_size=3, max_size=3))
    def begin(self, sizes: list[int]) -> None:
        """Most of what can go wrong needs peers and adapters that are there."""
        self.connect_frontend(FRONTENDS[0])
        self.connect_worker(WORKERS[0], 20)
        for name, size in zip(NAMES, sizes, strict=False):
            self.register(TENANTS[0], name, size)

    # --- frontends and clients ---

    @rule(frontend_id=st.sampled_from(FRONTENDS))
    def connect_frontend(self, frontend_id: str) -> None:
        self.clients.lose(frontend_id)
        self.frontends[frontend_id] = f"stream-{self.new_number()}"
        self.turn(events.FrontendConnected(frontend_id=frontend_id, incarnation=self.frontends[frontend_id]))

    @precondition(lambda self: self.frontends)
    @rule(data=st.data(), is_stale=st.booleans())
    def lose_frontend(self, data: st.DataObject, is_stale: bool) -> None:
        frontend_id = data.draw(st.sampled_from(sorted(self.frontends)))
        if is_stale:
            self.turn(events.FrontendLost(frontend_id=frontend_id, incarnation="an older stream"))
            return
        self.clients.lose(frontend_id)
        self.turn(events.FrontendLost(frontend_id=frontend_id, incarnation=self.frontends.pop(frontend_id)))

    @precondition(lambda self: self.frontends)
    @rule(wishes=st.lists(WISHES, min_size=1, max_size=5))
    def submit(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            self.submit_one(wish)

    @precondition(lambda self: self.frontends and self.links)
    @rule(wishes=st.lists(WISHES, min_size=1, max_size=5), num_turns=st.integers(1, 6))
    def submit_and_run(self, wishes: list[Wish], num_turns: int) -> None:
        for wish in wishes:
            self.submit_one(wish)
        self.run_for_a_while(num_turns)

    def submit_one(self, wish: Wish) -> None:
        number = self.new_number()
        due = {} if wish.patience_s is None else {wish.kind: self.now_ns + wish.patience_s * SECOND_NS}
        frontends = sorted(self.frontends)
        submitted = events.Submitted(
            key=events.RequestKey(frontends[number % len(frontends)], number),
            tenant=wish.tenant,
            request_id="one-that-may-be-taken" if wish.reuses_id else f"id-{number}",
            prompt_ids=tuple(range(number, number + wish.num_prompt)),
            adapters=tuple(AdapterPart(name=name, weight=1.0 + len(wish.names)) for name in wish.names),
            sampling=Sampling(seed=wish.seed),
            num_sequences=wish.num_sequences,
            max_tokens=wish.max_tokens,
            priority=wish.priority,
            **due,  # type: ignore[arg-type]
        )
        client = self.clients.add(submitted)
        self.turn(submitted)
        assert client.rejected or client.accepted, "neither accepted nor rejected"
        assert client.rejected or len(client.started.adapters) == len(wish.names), "other adapters than asked for"

    @precondition(lambda self: self.clients.open())
    @rule(data=st.data(), by_id=st.booleans())
    def cancel(self, data: st.DataObject, by_id: bool) -> None:
        client = data.draw(st.sampled_from(self.clients.open()))
        submitted = client.submitted
        asker = data.draw(st.sampled_from(sorted(self.frontends)))
        names = {"tenant": submitted.tenant, "request_id": submitted.request_id} if by_id else {"key": submitted.key}
        answers = self.turn(events.CancelRequested(frontend_id=asker, nonce=3, **names))
        assert client.is_over, "cancelled, and it goes on"
        assert commands.CancelAnswered(frontend_id=asker, nonce=3, found=True) in answers

    @precondition(lambda self: self.clients.open())
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients.open()))
        index = data.draw(st.integers(0, len(client.outputs) - 1))
        num_tokens = data.draw(st.integers(0, len(client.outputs[index])))
        self.turn(events.SequenceStopped(key=client.submitted.key, index=index, num_tokens=num_tokens))
        assert index in client.finishes, "stopped, and it goes on"

    # --- workers ---

    @rule(worker_id=st.sampled_from(WORKERS), num_pages=st.sampled_from([20, 20, 14, 40]))
    def start_worker(self, worker_id: str, num_pages: int) -> None:
        """At times one that is there already: it has restarted before anybody noticed."""
        self.connect_worker(worker_id, num_pages)

    def connect_worker(self, worker_id: str, num_pages: int) -> None:
        info = worker_info(worker_id, self.new_number(), num_pages=num_pages)
        self.links[worker_id] = Link(ModelWorker(info))
        self.turn(events.WorkerConnected(info=info))

    @precondition(lambda self: self.links)
    @rule(data=st.data(), is_stale=st.booleans())
    def lose_worker(self, data: st.DataObject, is_stale: bool) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.links)))
        epoch = self.links[worker_id].worker.info.epoch
        if is_stale:
            self.turn(events.WorkerLost(worker_id=worker_id, epoch=epoch - 1))
            return
        link = self.links.pop(worker_id)
        self.turn(events.WorkerLost(worker_id=worker_id, epoch=epoch))
        late = [*link.up, link.worker.step()]
        self.turn(*(event for event in late if event is not None))

    @precondition(lambda self: self.links)
    @rule(data=st.data(), num_frames=st.integers(1, 4))
    def deliver_down(self, data: st.DataObject, num_frames: int) -> None:
        self._deliver_down(data.draw(st.sampled_from(sorted(self.links))), num_frames)

    def _deliver_down(self, worker_id: str, num_frames: int) -> None:
        link = self.links[worker_id]
        for _ in range(min(num_frames, len(link.down))):
            for command in frame_order(link.down.popleft()):
                link.up.extend(link.worker.apply(command))

    @precondition(lambda self: self.links)
    @rule(data=st.data(), num_events=st.integers(1, 4), repeats=st.booleans())
    def deliver_up(self, data: st.DataObject, num_events: int, repeats: bool) -> None:
        link = self.links[data.draw(st.sampled_from(sorted(self.links)))]
        turn = [link.up.popleft() for _ in range(min(num_events, len(link.up)))]
        if repeats:
            turn += [event for event in turn if isinstance(event, events.StepReported)]
        self.turn(*turn)

    @precondition(lambda self: self.links)
    @rule(data=st.data(), num_steps=st.integers(1, 4))
    def step(self, data: st.DataObject, num_steps: int) -> None:
        link = self.links[data.draw(st.sampled_from(sorted(self.links)))]
        for _ in range(num_steps):
            report = link.worker.step()
            if report is not None:
                link.up.append(report)

    @precondition(lambda self: self.links)
    @rule(num_turns=st.integers(1, 12), outcomes=st.lists(st.sampled_from(OUTCOMES), max_size=3))
    def run_with_loads(self, num_turns: int, outcomes: list[str]) -> None:
        self.outcomes = list(outcomes)
        self.run_for_a_while(num_turns)
        self.outcomes = []

    def run_for_a_while(self, num_turns: int) -> None:
        """Everything in step, as on a quiet day: most of the way that a request goes."""
        for _ in range(num_turns):
            self.now_ns += SECOND_NS // 20
            for worker_id in sorted(self.links):
                self._run_worker(worker_id)

    @precondition(lambda self: any(link.worker.loading for link in self.links.values()))
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def end_load(self, data: st.DataObject, outcome: str) -> None:
        loading = [(id, digest) for id, link in sorted(self.links.items()) for digest in sorted(link.worker.loading)]
        worker_id, digest = data.draw(st.sampled_from(loading))
        link = self.links[worker_id]
        link.up.append(link.worker.end_load(digest, load_error(outcome)))

    # --- adapters ---

    @rule(tenant=st.sampled_from(TENANTS), name=st.sampled_from(NAMES), size=st.sampled_from([40, 200, 250, 350]))
    def register_again(self, tenant: str, name: str, size: int) -> None:
        self.register(tenant, name, size)

    def register(self, tenant: str, name: str, size: int) -> None:
        key = (tenant, name)
        if key in self.draining:
            return
        digest = f"digest-of-{name}-{size}"
        versions = self.adapters.setdefault(key, [])
        if versions[-1:] != [digest]:
            versions.append(digest)
        self.turn(
            events.AdapterCommitted(tenant=tenant, name=name, number=len(versions), digest=digest, num_parameters=size)
        )

    @precondition(lambda self: self.adapters)
    @rule(data=st.data(), mode=st.sampled_from(events.UnregisterMode), chance=st.integers(0, 3))
    def unregister(self, data: st.DataObject, mode: events.UnregisterMode, chance: int) -> None:
        if chance:
            return
        tenant, name = data.draw(st.sampled_from(sorted(self.adapters)))
        self.draining.add((tenant, name))
        self.turn(events.AdapterUnregistered(tenant=tenant, name=name, mode=mode))

    # --- time ---

    @rule(num_ms=st.sampled_from([1, 300, 1100, 2500, 11_000]))
    def tick(self, num_ms: int) -> None:
        self.now_ns += num_ms * 1_000_000
        self.turn(events.Tick())
        for client in self.clients.open():
            for due_ns in (client.submitted.deadline_ns, client.submitted.time_limit_ns):
                assert due_ns is None or due_ns > self.now_ns, "past its time, and it goes on"

    # --- what must hold ---

    @invariant()
    def the_books_add_up(self) -> None:
        self.core.check()

    @invariant()
    def a_worker_has_at_least_the_pages_that_the_scheduler_counts_on(self) -> None:
        for worker_id, link in self.links.items():
            if not link.down and not link.up:
                assert worker_id in self.core._workers, f"{worker_id} is connected, and given up"
                ledger = self.core._workers[worker_id].ledger
                assert link.worker.num_free >= ledger.free
                assert sum(r.pages for r in link.worker.running.values()) == ledger.counts().kv

    @invariant()
    def each_live_request_is_known_and_no_other(self) -> None:
        assert {request.key for request in self.core._requests} == {c.submitted.key for c in self.clients.open()}

    def teardown(self) -> None:
        """Whatever happened, everything ends if workers do their part."""
        try:
            self.bring_to_rest()
        finally:
            super().teardown()

    def bring_to_rest(self) -> None:
        for worker_id in self.workers:
            if worker_id not in self.links:
                self.connect_worker(worker_id, 40)
        for _ in range(3000):
            if not self.clients.open() and not self.draining:
                break
            self.now_ns += SECOND_NS // 10
            for worker_id in self.workers:
                self._run_worker(worker_id)
            self.turn(events.Tick())
        assert not self.clients.open(), self.describe()
        assert not self.draining, "an unregistered adapter is never gone"
        self._run_all_down()
        self.core.check()
        statistics = self.core.statistics()
        assert statistics.num_leases == statistics.num_queued_sequences == statistics.num_running_requests == 0
        assert all(worker.pages.kv == 0 for worker in statistics.workers), "pages are held for nobody"

    def describe(self) -> str:
        """Who never ended, and what stands in the way."""
        lines = [f"never ended: {[client.submitted.key for client in self.clients.open()]}"]
        for waiting in self.core._room:
            request = waiting.request
            lines.append(f"{waiting} {request.digests} at {request.places}, overtaken={waiting.overtaken_ns}")
            lines.append(f"  prompt {len(request.prompt_ids)}, {waiting.num_output} of {request.max_tokens} tokens")
        for worker in self.core._workers.values():
            lines.append(f"{worker} {worker.ledger.counts()} running {worker.sequences} starving {worker.starving}")
            lines += [f"  {resident}" for resident in worker.residency]
        return "\n".join(lines)

    def _run_worker(self, worker_id: str) -> None:
        link = self.links[worker_id]
        self._deliver_down(worker_id, len(link.down))
        for digest in list(link.worker.loading):
            outcome = self.outcomes.pop() if self.outcomes else "ok"
            link.up.append(link.worker.end_load(digest, load_error(outcome)))
        report = link.worker.step()
        turn, link.up = [*link.up, *([report] if report else [])], collections.deque()
        self.turn(*turn)

    def _run_all_down(self) -> None:
        for worker_id in self.workers:
            self._run_worker(worker_id)
            self._run_worker(worker_id)
            assert not self.links[worker_id].worker.running, "a zombie runs on the worker"


class OneWorkerMachine(CoreMachine):
    """With one worker, so that everybody wants the same room."""

    workers = WORKERS[:1]

    def start_worker(self, worker_id: str, num_pages: int) -> None:
        """Never a second one; overrides the rule."""

    @rule(num_pages=st.sampled_from([20, 14]))
    def restart_the_worker(self, num_pages: int) -> None:
        self.connect_worker(WORKERS[0], num_pages)
