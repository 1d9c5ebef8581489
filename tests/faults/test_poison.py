"""A request under which workers die is given up, and takes nobody with it: on the real processes."""

import asyncio
import signal

import pytest

from tests.e2e.processes import cluster
from tests.faults.checker import Losses, is_poisoned
from tests.faults.history import History, Submission
from tests.faults.lanes import Lanes, connect
from tests.faults.report import judge
from tests.faults.service import ClusterView, FaultService, watch
from tests.faults.soak import POISON, golden_run
from tests.faults.workload import catalogue

pytestmark = pytest.mark.e2e

DOOMED = Submission(prompt="one two " * 40, adapter=None, max_tokens=100, temperature=0.0, top_k=0, seed=1)
"""On the base model: a frozen worker loads no adapter."""
SMALL_STEPS = ("--max-sequences", "8", "--max-step-tokens", "16")
BYSTANDERS = catalogue(5, ("alpha", "beta"), num_submissions=32)


async def test_a_request_that_two_workers_died_under_ends_with_one_error_and_all_others_finish(
    tiny_model, tiny_adapters, tmp_path
):
    with cluster(tmp_path / "service", tiny_model) as running:
        service = FaultService(running, tiny_adapters, ("one", "two", "three"), *SMALL_STEPS)
        async with watch(service) as view:
            doomed, bystanders, killed = await kill_what_runs_it(service, view)
            await view.wait_until_idle()
            # After the kills: what it leaves in the prefix caches would let the doomed one start behind its prompt.
            golden = await golden_run(service.address, [*BYSTANDERS, DOOMED], service.digests)
        judge(bystanders, golden).assert_clean()
        assert len(bystanders) == len(BYSTANDERS)
        assert is_poisoned(doomed, POISON), doomed.terminal
        losses = Losses(at_ns=service.losses_ns())
        judge([doomed], golden, poison=POISON, losses=losses).assert_clean()
        assert set(service.workers) - killed == {name for name, worker in service.workers.items() if worker.is_alive}


async def kill_what_runs_it(service: FaultService, view: ClusterView) -> tuple[History, list[History], set[str]]:
    """Kills each worker that is given the doomed request, frozen before it can show a token of it.

    The bystanders come between the two deaths: nobody else is hit twice.
    """
    async with connect(service.address) as clients, asyncio.TaskGroup() as tasks:
        for worker in service.workers.values():
            worker.send(signal.SIGSTOP)
        doomed = tasks.create_task(clients.call.run(DOOMED), name="doomed")
        first = await view.wait_until_running()
        service.workers[first].send(signal.SIGKILL)
        second = await view.wait_until_running(but_not_on={first})
        lanes = Lanes(clients, iter(BYSTANDERS))
        bystanders = tasks.create_task(lanes.run(), name="bystanders")
        service.workers[second].send(signal.SIGKILL)
        for name in service.workers.keys() - {first, second}:
            service.workers[name].send(signal.SIGCONT)
        await bystanders
    return doomed.result().history(), list(lanes.histories()), {first, second}
