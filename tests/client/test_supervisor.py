"""The supervisor with children of one line."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loraplex_cli.bounded_log import BoundedLog
from loraplex_cli.child import ChildFailed, ChildSpec, ListenFlag
from loraplex_cli.restart_policy import CrashRecord, RestartPolicy
from loraplex_cli.supervisor import Supervisor
from tests.client.conftest import ROOT, is_gone, wait_until

FAST = RestartPolicy(min_delay_s=0.01, max_delay_s=0.05, stable_after_s=60, max_crashes=4)
SLEEPER = (sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)")
LISTENER = """
import json, os, socket, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
host, port = flags["--listen"].rsplit(":", 1)
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((host, int(port))); server.listen()
path = flags["--port-file"]
with open(path + ".tmp", "w") as file: json.dump({"listen": "127.0.0.1:%d" % server.getsockname()[1]}, file)
os.rename(path + ".tmp", path)
time.sleep(600)
"""


async def until(question, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_killed_child_is_started_again(tmp_path):
    told: list[str] = []
    async with Supervisor(tmp_path, policy=FAST, tell=told.append) as supervisor:
        child = await supervisor.start(ChildSpec(name="sleeper", command=SLEEPER))
        supervisor.settle()
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.num_starts == 2 and child.pid not in (None, first))
    assert any("SIGKILL" in line for line in told)
    assert is_gone(child.pid or first)


async def test_a_child_that_ends_again_and_again_is_given_up(tmp_path):
    # Ready at once, and then gone.
    spec = ChildSpec(name="crasher", command=(sys.executable, "-S", "-c", "import sys; sys.exit('the disk is full')"))
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        child = await supervisor.start(spec)
        supervisor.settle()
        with pytest.raises(ChildFailed, match=r"exit code 1, 4 times in a row(.|\n)*the disk is full"):
            await asyncio.wait_for(supervisor.wait(), 20)
    assert child.num_starts == 4


async def test_a_child_that_ends_while_the_service_starts_fails_the_start_with_its_log(tmp_path):
    command = (sys.executable, "-S", "-c", "import sys; sys.exit('no such model folder')")
    spec = ChildSpec(name="bad", command=command, port_file=tmp_path / "never.json")
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        with pytest.raises(ChildFailed, match="no such model folder"):
            await supervisor.start(spec)


async def test_a_child_that_never_listens_is_killed_after_its_time(tmp_path):
    spec = ChildSpec(name="mute", command=SLEEPER, port_file=tmp_path / "never.json", start_timeout_s=0.2)
    told: list[str] = []
    async with Supervisor(tmp_path, policy=FAST, tell=told.append) as supervisor:
        with pytest.raises(ChildFailed, match="SIGKILL"):
            await supervisor.start(spec)
    assert "did not listen within 0.2 s" in told[0]


async def test_a_restarted_child_takes_its_first_port_again(tmp_path):
    port_file = tmp_path / "ports.json"
    spec = ChildSpec(
        name="listener",
        command=(sys.executable, "-S", "-c", LISTENER),
        listen=(ListenFlag(flag="--listen", key="listen", address="127.0.0.1:0"),),
        port_file=port_file,
    )
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        child = await supervisor.start(spec)
        supervisor.settle()
        address = child.addresses["listen"]
        assert not address.endswith(":0")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.num_starts == 2 and port_file.exists())
        assert json.loads(port_file.read_text())["listen"] == address


async def test_children_are_stopped_in_the_reverse_order_of_their_start(tmp_path):
    code = (
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n"
        "    with open(sys.argv[2], 'a') as file: file.write(sys.argv[1] + '\\n')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(sys.argv[-1] + '.tmp').write_text('{}')\n"
        "pathlib.Path(sys.argv[-1] + '.tmp').rename(sys.argv[-1])\n"
        "time.sleep(600)\n"
    )
    order = tmp_path / "order"
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        for name in ("scheduler", "worker", "frontend"):
            command = (sys.executable, "-S", "-c", code, name, str(order))
            await supervisor.start(ChildSpec(name=name, command=command, port_file=tmp_path / f"{name}.json"))
    assert order.read_text().split() == ["frontend", "worker", "scheduler"]


async def test_a_child_that_ignores_sigterm_is_killed_with_all_it_started(tmp_path):
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(grandchild.pid))\n"
        "pathlib.Path(sys.argv[-1] + '.tmp').write_text('{}')\n"
        "pathlib.Path(sys.argv[-1] + '.tmp').rename(sys.argv[-1])\n"
        "time.sleep(600)\n"
    )
    spec = ChildSpec(
        name="stubborn",
        command=(sys.executable, "-S", "-c", code, str(tmp_path / "grandchild")),
        port_file=tmp_path / "ready.json",
        stop_timeout_s=0.2,
    )
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        child = await supervisor.start(spec)
        pid = child.pid
        assert pid is not None
    grandchild = int((tmp_path / "grandchild").read_text())
    await until(lambda: is_gone(pid) and is_gone(grandchild))


async def test_work_that_is_watched_ends_with_the_failure_of_a_child(tmp_path):
    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        await supervisor.start(ChildSpec(name="short", command=(sys.executable, "-S", "-c", "")))
        with pytest.raises(ChildFailed, match="short ended with exit code 0"):
            await supervisor.watch(asyncio.sleep(600))


async def test_watched_work_gives_its_result_or_its_own_error(tmp_path):
    async def fail():
        raise ZeroDivisionError

    async def answer():
        return 7

    async with Supervisor(tmp_path, policy=FAST) as supervisor:
        assert await supervisor.watch(answer()) == 7
        with pytest.raises(ZeroDivisionError):
            await supervisor.watch(fail())


def test_no_child_survives_a_supervisor_that_was_killed(tmp_path):
    code = (
        "import asyncio, pathlib, sys\n"
        "from loraplex_cli.supervisor import Supervisor\n"
        "from loraplex_cli.child import ChildSpec\n"
        "async def main(folder):\n"
        "    async with Supervisor(folder) as supervisor:\n"
        "        command = (sys.executable, '-S', '-c', 'import time; time.sleep(600)')\n"
        "        pids = [(await supervisor.start(ChildSpec(name=f'c{i}', command=command))).pid for i in range(3)]\n"
        "        (folder / 'pids.tmp').write_text(' '.join(map(str, pids)))\n"
        "        (folder / 'pids.tmp').rename(folder / 'pids')\n"
        "        await supervisor.wait()\n"
        "asyncio.run(main(pathlib.Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        wait_until((tmp_path / "pids").exists)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        wait_until(lambda: all(_is_sleeper(pid) for pid in pids))
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def _is_sleeper(pid):
    # The wrapper has the code among its arguments too, further back.
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3:4] == [b"import time; time.sleep(600)"]


def test_delays_double_up_to_a_bound_and_then_end():
    record = CrashRecord(RestartPolicy(max_crashes=9))
    assert [record.next_delay_s(5.0) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, None]


def test_a_long_run_wipes_the_record():
    record = CrashRecord(RestartPolicy())
    assert [record.next_delay_s(uptime_s) for uptime_s in (1.0, 1.0, 61.0, 1.0)] == [1, 2, 1, 2]


def test_a_log_stays_within_two_files(tmp_path):
    log = BoundedLog(tmp_path / "logs" / "a.log", max_bytes=100)
    for number in range(50):
        log.write(f"line {number}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert sorted(sizes) == ["a.log", "a.log.1"]
    assert max(sizes.values()) <= 100
    assert log.tail(1) == "line 49"


def test_the_output_of_a_child_is_in_its_log(tmp_path):
    async def main():
        async with Supervisor(tmp_path, policy=FAST) as supervisor:
            await supervisor.start(ChildSpec(name="sleeper", command=SLEEPER))
            await until(lambda: "up" in Path(tmp_path / "sleeper.log").read_text())

    asyncio.run(main())
