"""Every command against a fake server: what it prints, and how it fails."""

import importlib.metadata
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from loraplex_cli import doctor as doctor_module
from loraplex_cli.main import app
from tests.client.conftest import ROOT, adapter_folder

runner = CliRunner()
MODULE = [sys.executable, "-m", "loraplex_cli.main"]


@pytest.fixture
def loraplex(fake_server):
    def call(*arguments, input=None):
        return runner.invoke(app, list(map(str, arguments)), env={"LORAPLEX_TARGET": fake_server.target}, input=input)

    return call


def test_generate_streams_the_answer(loraplex):
    done = loraplex("generate", "tokens=3")
    assert (done.exit_code, done.stdout) == (0, "base:0 base:1 base:2 \n")


def test_generate_prints_each_of_n_answers(loraplex):
    done = loraplex("generate", "tokens=1", "--n", "2", "--raw")
    assert done.stdout == "[0] base:0 \n[1] base:0 \n"


def test_an_error_is_one_line_with_its_reason_and_exit_code_1(loraplex):
    done = loraplex("generate", "tokens=1", "--adapter", "nobody")
    assert done.exit_code == 1
    assert done.stderr == "error: no adapter 'nobody' [ADAPTER_NOT_FOUND]\n"


def test_an_error_that_may_pass_says_when_to_try_again(loraplex):
    done = loraplex("generate", "tokens=5 fail")
    assert done.exit_code == 1
    assert done.stderr == "error: the worker is gone [WORKER_LOST] (try again in 1 s)\n"


def test_a_server_that_is_not_there_is_one_line(loraplex):
    done = loraplex("generate", "hi", "--target", "127.0.0.1:1")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no answer from 127.0.0.1:1: is a server running there?")
    assert done.stderr.count("\n") == 1


def test_adapters_are_registered_listed_shown_and_removed(loraplex, tmp_path):
    folder = adapter_folder(tmp_path, "one")
    done = loraplex("adapters", "register", "cli-one", folder, "--validate-only")
    assert "nothing was stored" in done.stdout
    done = loraplex("adapters", "register", "cli-one", folder)
    assert "registered" in done.stdout
    assert "layers.0.q_proj" in done.stdout
    assert "rank 8" in done.stdout
    assert "scale 2" in done.stdout
    listed = loraplex("adapters", "list", "cli-").stdout
    assert listed.startswith("cli-one")
    assert listed.count("\n") == 1
    assert "note: a note" in loraplex("adapters", "show", "cli-one").stdout
    assert loraplex("generate", "tokens=1", "--adapter", "cli-one@1").stdout == "cli-one:0 \n"
    other = adapter_folder(tmp_path, "other")
    assert "[ADAPTER_EXISTS]" in loraplex("adapters", "register", "cli-one", other).stderr
    assert loraplex("adapters", "register", "cli-one", other, "--allow-update").exit_code == 0
    assert loraplex("adapters", "rm", "cli-one").stdout == "removed cli-one\n"
    assert loraplex("adapters", "show", "cli-one").exit_code == 1


def test_a_chat_answers_each_line_and_forgets_on_reset(loraplex):
    done = loraplex("chat", input="tokens=1\n\n/reset\ntokens=2\n/exit\n")
    assert done.exit_code == 0
    assert "base:0 \n" in done.stdout
    assert "base:0 base:1 \n" in done.stdout


def test_a_chat_goes_on_after_an_answer_that_failed(loraplex):
    done = loraplex("chat", input="fail tokens=5\ntokens=1\n")
    assert done.exit_code == 0
    assert "WORKER_LOST" in done.stderr
    assert done.stdout.count("base:0 ") == 2


def test_ctrl_c_stops_the_answer_and_not_the_chat(fake_server):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*MODULE, "chat", "--target", fake_server.target, "--max-tokens", "100000"],
        cwd=ROOT,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    try:
        read_until(leader, b"> ")
        os.write(leader, b"endless\n")
        read_until(leader, b"base:3 ")
        process.send_signal(signal.SIGINT)
        read_until(leader, b"\n> ")
        # The fake reads its orders from the whole conversation.
        os.write(leader, b"/reset\n")
        read_until(leader, b"> ")
        os.write(leader, b"tokens=2\n")
        read_until(leader, b"base:0 base:1 ")
        os.write(leader, b"/exit\n")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def read_until(file, wanted, timeout_s=15.0):
    seen, deadline = b"", time.monotonic() + timeout_s
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(file, 4096)


def test_doctor_finds_a_server_that_is_well(loraplex, tmp_path):
    done = loraplex("doctor", "--data-dir", tmp_path)
    assert done.exit_code == 0, done.stdout
    assert "1 workers ready" in done.stdout
    assert "FIX" not in done.stdout


def test_doctor_says_what_to_do_and_exits_1(loraplex, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "MIN_FREE_BYTES", 1 << 60)
    done = loraplex("doctor", "--model", tmp_path, "--target", "192.0.2.1:1", "--data-dir", tmp_path / "deep" / "er")
    assert done.exit_code == 1
    marked = [line for line in done.stdout.splitlines() if line.startswith("FIX")]
    assert len(marked) == 3
    assert "GiB; close something" in marked[0]
    assert "config.json" in marked[1]
    assert "no server at 192.0.2.1:1" in marked[2]
    assert done.stderr == "error: 3 things to fix, marked FIX above\n"


def test_doctor_reports_a_missing_torch(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "pip install" in doctor_module.torch_version().fix


def test_model_fetch_wants_both_flags_or_none(loraplex, tmp_path):
    done = loraplex("model", "fetch", "--gguf", tmp_path / "x.gguf")
    assert done.exit_code == 1
    assert "both --gguf and --out" in done.stderr


def test_model_fetch_names_a_file_that_is_not_there(loraplex, tmp_path):
    done = loraplex("model", "fetch", "--gguf", tmp_path / "x.gguf", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "x.gguf" in done.stderr


def test_a_process_command_hands_its_flags_on():
    done = subprocess.run(
        [*MODULE, "frontend", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--adapter-roots" in done.stdout + done.stderr


def test_the_command_imports_neither_torch_nor_the_servers():
    code = (
        "import sys, loraplex_cli.main\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'sqlalchemy', 'tokenizers', 'loraplex_worker', 'loraplex_frontend'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_failure(fake_server):
    command = [*MODULE, "generate", "tokens=400 delay=0.001", "--max-tokens", "400", "--target", fake_server.target]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(7)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
