"""The worker as a process: signals, exit codes, logs."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from loraplex.worker.v1 import worker_link_pb2 as pb
from loraplex_adapters.store import AdapterStore
from tests.fakes import fake_worker_gateway as fake
from tests.worker import tiny_worker as tiny

PROMPT = [3, 14, 15, 92, 65]
EXIT_S = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


class WorkerProcess:
    def __init__(self, process):
        self.process = process

    def send(self, number):
        self.process.send_signal(number)

    async def end(self):
        """(exit code, lines of stderr)."""
        async with asyncio.timeout(EXIT_S):
            _, log = await self.process.communicate()
        return self.process.returncode, log.decode().splitlines()


def arguments(model, store, address):
    flags = {
        "--scheduler": address,
        "--model": model,
        "--store": store,
        "--dtype": "fp32",
        "--page-size": tiny.PAGE_SIZE,
        "--kv-pool-bytes": tiny.NUM_PAGES * tiny.PAGE_BYTES,
        "--worker-id": "tiny",
    }
    return [sys.executable, "-m", "loraplex_worker", *(str(part) for pair in flags.items() for part in pair)]


@contextlib.asynccontextmanager
async def started(model, store, address, **environment):
    process = await asyncio.create_subprocess_exec(
        *arguments(model, store, address),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        yield WorkerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_says_leave_and_exits_0_and_a_frozen_worker_misses_its_heartbeats(model, tmp_path):
    digest = tiny.put_adapter(AdapterStore(tmp_path / "store"), seed=1)
    gateway = fake.FakeWorkerGateway(heartbeat_interval_s=0.05)
    async with (
        fake.serve(gateway) as server,
        started(model, tmp_path / "store", server.address) as worker,
    ):
        stream = await gateway.worker()
        assert stream.register.worker_id == "tiny"
        stream.send(load=[fake.load(digest, num_pages=tiny.ADAPTER_PAGES)])
        await stream.until_event(digest, pb.WORKER_ADAPTER_STATE_DEVICE)
        stream.send(admit=[fake.admit(1, PROMPT, max_tokens=20, adapters=fake.using(digest)), fake.admit(2, PROMPT)])
        assert len((await stream.until_finished(1)).tokens) == 20
        await stream.until_finished(2)

        worker.send(signal.SIGSTOP)
        assert await heartbeats_stop(stream)
        seen = len(stream.of_kind("heartbeat"))
        worker.send(signal.SIGCONT)
        await stream.until(lambda: len(stream.of_kind("heartbeat")) > seen, "it beats again")

        worker.send(signal.SIGTERM)
        code, log = await worker.end()
        assert stream.frames[-1].WhichOneof("frame") == "leave"
    assert code == 0, log
    entries = [json.loads(line) for line in log]
    assert entries[-1]["event"] == "stopped"
    assert {entry["worker_id"] for entry in entries} == {"tiny"}


async def heartbeats_stop(stream):
    """Whether half a second passes without a frame: ten heartbeats are due in it."""
    for _ in range(20):
        before = len(stream.frames)
        try:
            async with asyncio.timeout(0.5):
                await stream.until(lambda before=before: len(stream.frames) > before, "a frame")
        except TimeoutError:
            return True
    return False


async def test_sigterm_while_no_scheduler_is_there_exits_0(model, tmp_path):
    async with started(model, tmp_path / "store", "127.0.0.1:1") as worker:
        async with asyncio.timeout(EXIT_S):
            line = await worker.process.stderr.readline()
            while json.loads(line)["event"] != "scheduler_lost":
                line = await worker.process.stderr.readline()
        worker.send(signal.SIGTERM)
        assert (await worker.end())[0] == 0


async def test_a_model_that_cannot_be_served_exits_1_and_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    async with started(tmp_path, tmp_path / "store", "127.0.0.1:1") as worker:
        code, log = await worker.end()
    assert code == 1
    assert "MambaForCausalLM" in log[-1]
    assert json.loads(log[-1])["level"] == "error"


async def test_native_kernels_that_were_asked_for_and_cannot_be_had_exit_1_and_say_why(model, tmp_path):
    environment = {"LORAPLEX_WORKER__CPU_KERNELS": "native", "CXX": "/nowhere/g++"}
    async with started(model, tmp_path / "store", "127.0.0.1:1", **environment) as worker:
        code, log = await worker.end()
    assert code == 1
    assert "cpu_kernels: native" in log[-1]


def test_a_bad_setting_exits_2_in_one_line(tmp_path):
    command = [*arguments(tmp_path, tmp_path, "x"), "--dtype", "fp64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "dtype" in done.stderr
    assert len(done.stderr.splitlines()) == 1
