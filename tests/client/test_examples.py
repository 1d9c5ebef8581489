"""The examples, run as a reader would run them, against the fake; the real service is for the end-to-end tests."""

import subprocess
import sys

import pytest

from loraplex_client import Client
from tests.client.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def target(fake_server):
    names = ("sql", "json", "pirate")
    with Client(fake_server.target) as client:
        for name in names:
            client.register_adapter(name, EXAMPLES / "adapters" / name)
        yield fake_server.target
        for name in names:
            client.unregister_adapter(name)


def run(name, target):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), target], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_script_ported_from_vllm_answers_with_each_adapter_in_order(target):
    lines = run("vllm_offline.py", target)
    assert [line.partition(":")[0] for line in lines] == ["sql", "pirate", "base", "raw text"]
    assert lines[1] == "pirate: 'pirate:0 pirate:1 pirate:2'"


def test_the_stream_ends_with_what_answered(target):
    text, summary = run("stream.py", target)
    assert text.startswith("pirate:0 pirate:1")
    assert summary == "(pirate version 1, 3 tokens, max_tokens)"


def test_the_session_prints_every_adapter_once(target):
    names = sorted(line.partition(":")[0] for line in run("session_many_adapters.py", target))
    assert names == ["json", "pirate", "sql"]
