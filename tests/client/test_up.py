"""`loraplex up` and `loraplex demo` as processes, around stand-ins for the three services."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraplex_client import Client
from tests.client.conftest import ROOT, is_gone, read_ports, wait_until

COMMAND = [sys.executable, "-m", "tests.client.fake_service"]


@contextlib.contextmanager
def up(folder, *flags, stdin=subprocess.DEVNULL):
    port_file = folder / "ports.json"
    command = [*COMMAND, "up", "--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"), "--port-file", port_file]
    process: Any = subprocess.Popen(
        [*command, *flags], cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process, read_ports(port_file, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin:
            process.stdin.close()


def run(*arguments, timeout_s=30, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **environment},
    )


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_it_serves_says_where_and_ends_in_order_on_sigterm(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FLAGS", "--num-ready-workers 2")
    with up(tmp_path, "--demo-adapters", "--num-workers", "2") as (process, ports):
        with Client(ports["listen"], admin_target=ports["admin_listen"]) as client:
            assert client.generate("tokens=1", adapter="sql").text == "sql:0 "
            assert client.cluster().workers
        children = children_of(process.pid)
        assert len(children) == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = process.stdout.read().decode()
    assert f"serving on {ports['listen']}" in said
    assert "registered pirate version 1" in said
    assert all(is_gone(child) for child in children)
    assert not (tmp_path / "ports.json").exists()
    logs = {path.name for path in (tmp_path / "data" / "logs").iterdir()}
    assert logs == {"scheduler.log", "worker-0.log", "worker-1.log", "frontend.log"}


def test_a_killed_frontend_comes_back_on_the_same_address(tmp_path):
    with up(tmp_path) as (process, ports):
        frontend = children_of(process.pid)[-1]
        os.kill(frontend, signal.SIGKILL)
        wait_until(lambda: len(set(children_of(process.pid)) - {frontend}) == 3)
        with Client(ports["listen"]) as client:
            wait_until(lambda: _answers(client))


def _answers(client):
    with contextlib.suppress(Exception):
        return client.generate("tokens=1").text == "base:0 "


def test_no_child_survives_when_it_is_killed(tmp_path):
    with up(tmp_path) as (process, _):
        children = children_of(process.pid)
        process.kill()
        process.wait()
        wait_until(lambda: all(is_gone(child) for child in children))


def test_it_stops_with_the_program_that_started_it(tmp_path):
    with up(tmp_path, "--stop-with-stdin", stdin=subprocess.PIPE) as (process, _):
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_second_service_in_the_same_folder_is_refused(tmp_path):
    with up(tmp_path):
        done = run("up", "--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data")
    assert done.returncode == 1
    assert re.fullmatch(r"error: .* is in use by another `loraplex up`.*\n", done.stderr)


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("up", "--listen", address, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: cannot listen on {address}: .*\n", done.stderr)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:many"])
def test_a_malformed_address_is_refused(tmp_path, address):
    done = run("up", "--listen", address, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: '{address}' is no address")


def test_an_address_that_others_can_reach_is_refused(tmp_path):
    done = run("up", "--listen", "0.0.0.0:0", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "give a loopback address" in done.stderr


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    done = run("up", "--listen", "127.0.0.1:0", "--model", tmp_path, "--data-dir", tmp_path / "data")
    assert done.returncode == 1
    assert "config.json, tokenizer.json, *.safetensors missing" in done.stderr


def test_the_demo_streams_side_by_side_proves_it_and_leaves_nothing(tmp_path):
    done = run("demo", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("sql", "json", "pirate", "french", "base"):
        assert re.search(rf"^ *{name} \| {name}:0 {name}:1 ", done.stdout, re.MULTILINE), done.stdout
    proof = re.search(r"(\d+) steps, (\d+) mixed, up to (\d+) adapters in one step, 15 tokens", done.stdout)
    assert proof
    assert proof.groups() == ("40", "30", "3")
    assert re.search(r"versions sql@1:[0-9a-f]{8} json@1:", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_when_the_streams_did_not_share_steps():
    done = run("demo", FAKE_FLAGS="--max-adapters-in-step 1")
    assert done.returncode == 1
    assert "the streams did not share steps" in done.stderr
    assert "up to 1 adapters in one step" in done.stdout


def test_the_port_file_is_whole_and_names_both_addresses(tmp_path):
    with up(tmp_path) as (_, ports):
        assert set(ports) == {"listen", "admin_listen"}
        assert json.loads((tmp_path / "ports.json").read_text()) == ports
