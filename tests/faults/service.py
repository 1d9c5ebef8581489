"""The real processes, made to be hit: workers by name, and a view of what the scheduler counts."""

import asyncio
import contextlib
import datetime
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import grpc

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from tests.e2e.conftest import is_serving, register
from tests.e2e.processes import Cluster, Process, wait_until
from tests.faults.blow import Blow, BlowResult

SCHEDULER_FLAGS = ("--lease-ttl-s", "1.2", "--heartbeat-s", "0.2", "--no-worker-grace-s", "30")
"""A lease below the bound of two seconds that a busy machine can keep, and a grace in which a worker can start."""
WORKER_FLAGS = ("--dtype", "fp32", "--kv-pool-bytes", str(32 << 20), "--num-threads", "1", "--load-timeout-s", "30")
LOOK_S = 0.01
RETURN_TIMEOUT_S = 60.0


class FaultService:
    """One scheduler, one frontend, workers; all on free loopback ports."""

    def __init__(
        self, running: Cluster, adapters: Mapping[str, Path], worker_names: tuple[str, ...], *worker_flags: str
    ) -> None:
        """Returns when everything serves."""
        self._running = running
        self._worker_flags = (*WORKER_FLAGS, *worker_flags)
        self.scheduler = running.start_scheduler(*SCHEDULER_FLAGS)
        self.workers = {name: self._start_worker(name) for name in worker_names}
        roots = [flag for folder in adapters.values() for flag in ("--adapter-roots", str(folder))]
        ports = running.start_frontend(*roots).ports()
        self.address, self.admin_address = ports["listen"], ports["admin_listen"]
        wait_until(lambda: is_serving(self.address), 60, "the service serves")
        self.digests = {name: register(self.address, name, folder).version.digest for name, folder in adapters.items()}

    def _start_worker(self, name: str) -> Process:
        return self._running.start_worker(*self._worker_flags, "--worker-id", name, name=name)

    def restart(self, name: str) -> None:
        """Starts a worker that has died."""
        assert self.workers[name].popen.poll() is not None, f"{name} lives"
        self.workers[name] = self._start_worker(name)

    def losses_ns(self) -> list[int]:
        """Monotonic times at which the scheduler lost a worker, as it wrote them down."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        gone = events(self.scheduler, "worker_gone")
        return [int(datetime.datetime.fromisoformat(line["timestamp"]).timestamp() * 1e9) - offset_ns for line in gone]

    def stop(self) -> dict[str, int]:
        """Stops every process in an orderly way; the exit codes of those that nobody had killed, by name.

        Raises AssertionError if anything of any process group is left.
        """
        alive = [process for process in self._running.processes if process.popen.poll() is None]
        self._running.stop()
        left = [process.name for process in self._running.processes if is_group_alive(process.popen.pid)]
        assert left == []
        return {process.name: process.popen.returncode for process in alive}


def events(process: Process, event: str) -> list[dict[str, Any]]:
    """The lines of its log that tell of ``event``."""
    lines = (line for line in process.log().splitlines() if f'"{event}"' in line)
    return [record for line in lines if (record := json.loads(line)).get("event") == event]


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.asynccontextmanager
async def watch(service: FaultService) -> AsyncIterator["ClusterView"]:
    """Returns once every worker is counted."""
    async with (
        grpc.aio.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel,
        grpc.aio.insecure_channel(service.admin_address, options=CLIENT_OPTIONS) as admin_channel,
    ):
        view = ClusterView(admin_channel, channel)
        for name in service.workers:
            await view.wait_until_counted(name)
        yield view


class ClusterView:
    """What GetCluster and the registry answer, over one connection each."""

    def __init__(self, admin_channel: grpc.aio.Channel, channel: grpc.aio.Channel) -> None:
        self._cluster: Any = cluster_pb2_grpc.ClusterServiceStub(admin_channel)
        self._adapters: Any = adapter_pb2_grpc.AdapterServiceStub(channel)

    async def state(self) -> cluster_pb2.GetClusterResponse:
        return await self._cluster.GetCluster(cluster_pb2.GetClusterRequest(), timeout=10)

    async def worker(self, name: str) -> cluster_pb2.Worker | None:
        workers = (await self.state()).workers
        return next((worker for worker in workers if worker.worker_id == name), None)

    async def wait_until_counted(self, name: str) -> None:
        async with asyncio.timeout(RETURN_TIMEOUT_S):
            while True:
                if await self.worker(name) is not None:
                    return
                await asyncio.sleep(LOOK_S)

    async def wait_until_gone(self, name: str) -> None:
        async with asyncio.timeout(RETURN_TIMEOUT_S):
            while True:
                if await self.worker(name) is None:
                    return
                await asyncio.sleep(LOOK_S)

    async def wait_until_busy(self, name: str) -> cluster_pb2.Worker:
        """Until it runs sequences and has given out tokens since it joined."""
        async with asyncio.timeout(RETURN_TIMEOUT_S):
            while True:
                worker = await self.worker(name)
                if worker is not None and worker.num_running_sequences and worker.num_output_tokens:
                    return worker
                await asyncio.sleep(LOOK_S)

    async def wait_until_running(self, *, but_not_on: Collection[str] = ()) -> str:
        """The name of a worker on which a sequence is admitted."""
        async with asyncio.timeout(RETURN_TIMEOUT_S):
            while True:
                for worker in (await self.state()).workers:
                    if worker.num_running_sequences and worker.worker_id not in but_not_on:
                        return worker.worker_id
                await asyncio.sleep(LOOK_S)

    async def wait_until_idle(self) -> cluster_pb2.GetClusterResponse:
        """Until nothing runs or waits. AssertionError if a page or a lease has not come back by then."""
        async with asyncio.timeout(30):
            while True:
                state = await self.state()
                if is_idle(state):
                    break
                await asyncio.sleep(LOOK_S)
        for worker in state.workers:
            assert worker.num_pages_free + worker.num_pages_adapter == worker.num_pages_total, worker
            assert sum(adapter.num_pages for adapter in worker.adapters) == worker.num_pages_adapter, worker
            assert [adapter.num_leases for adapter in worker.adapters if adapter.num_leases] == []
        assert await self._num_registry_leases() == 0
        return state

    async def _num_registry_leases(self) -> int:
        answer = await self._adapters.ListAdapters(adapter_pb2.ListAdaptersRequest(), timeout=10)
        return sum(adapter.version.num_leases for adapter in answer.adapters)


def is_idle(state: cluster_pb2.GetClusterResponse) -> bool:
    busy = [worker for worker in state.workers if worker.num_running_sequences or worker.num_pages_kv]
    return not busy and not state.num_queued_requests and not state.num_running_requests


async def strike(service: FaultService, view: ClusterView, blow: Blow) -> BlowResult:
    """One blow, from when the victim is at work until it is back, clean, and nobody else was lost."""
    await view.wait_until_busy(blow.victim)
    await asyncio.sleep(blow.delay_s)
    seen = await view.worker(blow.victim)
    process = service.workers[blow.victim]
    num_terms = len(events(process, "registered"))
    begin = time.monotonic()
    process.send(blow.signal)
    await view.wait_until_gone(blow.victim)
    detection_s = time.monotonic() - begin
    if blow.signal is signal.SIGKILL:
        await asyncio.to_thread(process.popen.wait, 10)
        service.restart(blow.victim)
    else:
        await asyncio.sleep(blow.frozen_s)
        process.send(signal.SIGCONT)
    await view.wait_until_counted(blow.victim)
    return_s = time.monotonic() - begin
    await asyncio.to_thread(assert_came_back_clean, service.workers[blow.victim], num_terms)
    return BlowResult(
        signal=blow.signal.name,
        victim=blow.victim,
        num_sequences=seen.num_running_sequences if seen is not None else 0,
        detection_s=round(detection_s, 4),
        return_s=round(return_s, 4),
    )


def assert_came_back_clean(process: Process, num_terms: int) -> None:
    """The worker lives and began a new term, above every earlier one. Its log spans restarts."""
    terms = wait_until(lambda: later_terms(process, num_terms), 10, f"{process.name} has registered again")
    assert process.popen.poll() is None
    epochs = [line["epoch"] for line in terms]
    assert epochs == sorted(set(epochs)), epochs


def later_terms(process: Process, num_terms: int) -> list[dict[str, Any]] | None:
    terms = events(process, "registered")
    return terms if len(terms) > num_terms else None
