"""A worker that is killed, frozen or asked to leave costs time, never a token: design section 8, rule 1."""

import asyncio
import signal

import pytest

from tests.e2e.conftest import is_serving, register
from tests.e2e.processes import cluster, wait_until
from tests.e2e.streams import Session, channel, read_cluster, request, wait_for_idle

NUM_TOKENS = 200
NUM_STREAMS = 24


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_streams_go_on_elsewhere_with_the_same_tokens(blow, tiny_model, tiny_adapters, tmp_path):
    """Two workers; one gets the signal in the middle. Greedy answers equal those of an undisturbed run."""
    with cluster(tmp_path / "service", tiny_model) as running:
        running.start_scheduler("--lease-ttl-s", "1", "--heartbeat-s", "0.2")
        workers = [running.start_worker("--dtype", "fp32", "--worker-id", name, name=name) for name in ("one", "two")]
        ports = running.start_frontend("--adapter-roots", str(tiny_adapters["alpha"])).ports()
        wait_until(lambda: is_serving(ports["listen"]), 60, "the service serves")
        register(ports["listen"], "alpha", tiny_adapters["alpha"])
        await wait_for_workers(ports["admin_listen"], 2)
        undisturbed = await run_streams(ports["listen"])
        async with asyncio.TaskGroup() as tasks:
            disturbed = tasks.create_task(run_streams(ports["listen"]))
            await wait_for_sequences(ports["admin_listen"])
            workers[0].send(blow)
            await wait_for_workers(ports["admin_listen"], 1)
        assert disturbed.result() == undisturbed
        await wait_for_idle(ports["admin_listen"])
        workers[0].send(signal.SIGCONT)


async def run_streams(address: str) -> list[list[int]]:
    async with channel(address) as open_channel:
        session = Session(open_channel)
        await session.start()
        for handle in range(1, NUM_STREAMS + 1):
            adapter = "alpha" if handle % 2 else None
            await session.submit(handle, request(f"Stream {handle}", adapter=adapter, max_tokens=NUM_TOKENS))
        await session.read_all()
    for stream in session.streams.values():
        stream.assert_complete(NUM_TOKENS)
    return [session.streams[handle].token_ids for handle in sorted(session.streams)]


async def wait_for_workers(admin_address: str, number: int) -> None:
    async with asyncio.timeout(60):
        while True:
            if len((await read_cluster(admin_address)).workers) == number:
                return
            await asyncio.sleep(0.02)


async def wait_for_sequences(admin_address: str) -> None:
    """Until both workers run some and have produced tokens for them."""
    async with asyncio.timeout(60):
        while True:
            workers = (await read_cluster(admin_address)).workers
            if all(worker.num_running_sequences and worker.num_output_tokens > 50 for worker in workers):
                return
            await asyncio.sleep(0.005)
