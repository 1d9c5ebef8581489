"""The task that owns the core, between peers that are plain objects."""

import asyncio

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.dispatch import Dispatcher
from tests.scheduler.core_machine import worker_info


class Recorder:
    """A worker's or a frontend's session that keeps what it is sent, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[commands.Command]] = []
        self.fences: list[str] = []

    def send(self, *arguments) -> None:
        self.batches.append(arguments[-1])

    def fence(self, cause: str) -> None:
        self.fences.append(cause)


def submitted(handle: int) -> events.Submitted:
    return events.Submitted(
        key=events.RequestKey("front", handle), tenant="red", request_id=f"id-{handle}", prompt_ids=(1,), max_tokens=4
    )


async def run(scenario) -> None:
    dispatcher = Dispatcher(SchedulerCore(CoreConfig()))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(dispatcher.run())
        await scenario(dispatcher)
        running.cancel()


async def test_what_one_turn_has_for_a_peer_is_one_batch():
    async def scenario(dispatcher: Dispatcher) -> None:
        front, work = Recorder(), Recorder()
        dispatcher.add_frontend("front", front)
        dispatcher.add_worker("w", 1, work)
        await dispatcher.apply(events.FrontendConnected(frontend_id="front", incarnation="1"))
        await dispatcher.apply(events.WorkerConnected(info=worker_info("w", 1)))
        for handle in (1, 2):
            await dispatcher.post(submitted(handle))
        await dispatcher.apply(submitted(3))
        assert [len(batch) for batch in work.batches] == [3]
        assert [len(batch) for batch in front.batches] == [6]

    await run(scenario)


async def test_commands_for_an_older_registration_never_reach_a_newer_one():
    """The new stream is known before the core has heard of it; what it still decides is for the old one."""

    async def scenario(dispatcher: Dispatcher) -> None:
        old, new = Recorder(), Recorder()
        dispatcher.add_frontend("front", Recorder())
        dispatcher.add_worker("w", 1, old)
        await dispatcher.apply(events.FrontendConnected(frontend_id="front", incarnation="1"))
        await dispatcher.apply(events.WorkerConnected(info=worker_info("w", 1)))
        dispatcher.add_worker("w", 2, new)
        await dispatcher.apply(submitted(1))
        assert new.batches == []
        assert len(old.batches) == 1
        await dispatcher.apply(events.WorkerConnected(info=worker_info("w", 2)))
        (again,) = new.batches
        assert [(type(c), c.epoch) for c in again] == [(commands.Admit, 2)]

    await run(scenario)


async def test_the_fence_reaches_the_registration_that_it_is_for():
    async def scenario(dispatcher: Dispatcher) -> None:
        work = Recorder()
        dispatcher.add_frontend("front", Recorder())
        dispatcher.add_worker("w", 1, work)
        await dispatcher.apply(events.FrontendConnected(frontend_id="front", incarnation="1"))
        await dispatcher.apply(events.WorkerConnected(info=worker_info("w", 1)))
        await dispatcher.apply(submitted(1))
        (admit,) = work.batches[0]
        gap = events.Emission(sequence_id=admit.sequence_id, first_index=1, token_ids=(1,))
        await dispatcher.apply(events.StepReported(worker_id="w", epoch=1, step=1, emissions=(gap,)))
        assert len(work.fences) == 1

    await run(scenario)
