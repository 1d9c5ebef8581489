"""A core with one frontend, model workers that are always in step, and a few words to drive them with."""

from typing import Any

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.config import SECOND_NS, CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.sampling import Sampling
from tests.scheduler.client_ledger import Client, Clients
from tests.scheduler.core_machine import worker_info
from tests.scheduler.model_worker import ModelWorker, frame_order

FRONTEND = "front"


class Rig:
    """Nothing happens by itself: each method is one event, or a few steps of the workers."""

    def __init__(self, **config: Any) -> None:
        self.core = SchedulerCore(CoreConfig(**{"grant_tokens": 6, "grant_low_tokens": 3, **config}))
        self.now_ns = 5 * SECOND_NS
        self.clients = Clients()
        self.workers: dict[str, ModelWorker] = {}
        self.commands: list[commands.Command] = []
        """All so far."""
        self.holds_loads = False
        """Whether loads wait for ``end_load``."""
        self._last = 0
        self.turn(events.FrontendConnected(frontend_id=FRONTEND, incarnation="1"))

    def turn(self, *turn: events.Event) -> list[commands.Command]:
        result = self.core.handle_all(turn, now_ns=self.now_ns)
        self.core.check()
        self.clients.hear(result)
        self.commands += result
        further: list[commands.Command] = []
        for worker_id, worker in self.workers.items():
            own = [
                c
                for c in result
                if isinstance(c, commands.WorkerCommand) and (c.worker_id, c.epoch) == (worker_id, worker.info.epoch)
            ]
            answers = [event for command in frame_order(own) for event in worker.apply(command)]
            if not self.holds_loads:
                answers += [worker.end_load(digest) for digest in list(worker.loading)]
            if answers:
                further += self.turn(*answers)
        return result + further

    def connect_worker(self, worker_id: str = "w", **sizes: int) -> ModelWorker:
        self._last += 1
        info = worker_info(worker_id, self._last, **sizes)
        worker = self.workers[worker_id] = ModelWorker(info)
        self.turn(events.WorkerConnected(info=info))
        return worker

    def lose_worker(self, worker_id: str = "w") -> ModelWorker:
        worker = self.workers.pop(worker_id)
        self.turn(events.WorkerLost(worker_id=worker_id, epoch=worker.info.epoch))
        return worker

    def register(self, name: str, *, pages: int = 2, tenant: str = "red", number: int = 1) -> str:
        digest = f"{tenant}-{name}-{number}"
        self.turn(
            events.AdapterCommitted(tenant=tenant, name=name, number=number, digest=digest, num_parameters=pages * 50)
        )
        return digest

    def unregister(self, name: str, mode: events.UnregisterMode) -> list[commands.Command]:
        return self.turn(events.AdapterUnregistered(tenant="red", name=name, mode=mode))

    def submit(self, *names: str | AdapterPart, num_prompt: int = 4, **fields: Any) -> Client:
        self._last += 1
        parts = tuple(name if isinstance(name, AdapterPart) else AdapterPart(name=name) for name in names)
        prompt_ids = tuple(range(self._last, self._last + num_prompt))
        defaults = {
            "prompt_ids": prompt_ids,
            "tenant": "red",
            "request_id": f"id-{self._last}",
            "max_tokens": 4,
            "sampling": Sampling(seed=1),
        }
        submitted = events.Submitted(
            key=events.RequestKey(FRONTEND, self._last),
            adapters=parts,
            **{**defaults, **fields},
        )
        client = self.clients.add(submitted)
        self.turn(submitted)
        return client

    def end_load(self, digest: str, error: LoraplexError | None = None, worker_id: str = "w") -> None:
        self.turn(self.workers[worker_id].end_load(digest, error))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for worker in self.workers.values():
                report = worker.step()
                if report is not None:
                    self.turn(report)

    def finish(self, *clients: Client, limit: int = 500) -> None:
        """Steps until these are over."""
        for _ in range(limit):
            if all(client.is_over for client in clients):
                return
            self.pass_time(0.01)
            self.step()
        raise AssertionError(f"not over after {limit} steps")

    def pass_time(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)
        self.turn(events.Tick())

    def of_kind(self, kind: type) -> list[Any]:
        return [command for command in self.commands if isinstance(command, kind)]

    def is_running(self, client: Client) -> bool:
        return any(
            r.admit.prompt_ids == client.submitted.prompt_ids for w in self.workers.values() for r in w.running.values()
        )


def refusal(client: Client) -> tuple[str, str]:
    """(class, reason) of a rejection."""
    assert client.rejected is not None
    return type(client.rejected.error).__name__, client.rejected.error.reason


def failure(client: Client, index: int = 0) -> tuple[str, str]:
    """(class, reason) of the error that ended a sequence."""
    error = client.finishes[index].error
    assert error is not None
    return type(error).__name__, error.reason
