"""Two services for the end-to-end tests: a fast one around a tiny random model, and the real one as users start it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from tests.e2e.processes import Cluster, Process, cluster, wait_until
from tests.e2e.tiny_model import save_tiny_adapters, save_tiny_model

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def tiny_model(smollm2_folder, tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"), smollm2_folder)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model, tmp_path_factory) -> dict[str, Path]:
    return save_tiny_adapters(tiny_model, tmp_path_factory.mktemp("tiny-adapters"))


def register(address: str, name: str, folder: Path, *, token: str | None = None, **fields) -> adapter_pb2.Adapter:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        request = adapter_pb2.RegisterAdapterRequest(name=name, uri=folder.as_uri(), **fields)
        return stub.RegisterAdapter(request, timeout=30, metadata=metadata).adapter


def is_serving(address: str) -> bool:
    """Whether the frontend's health service says that generation works."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="loraplex.v1.InferenceService")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(request, timeout=2)
        except grpc.RpcError:
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


class Service:
    """Addresses of a running service, and the processes behind it."""

    def __init__(self, address: str, admin_address: str, processes: Cluster | Process) -> None:
        self.address = address
        self.admin_address = admin_address
        self.processes = processes


@pytest.fixture(scope="session")
def tiny_service(tiny_model, tiny_adapters, tmp_path_factory) -> Iterator[Service]:
    with cluster(tmp_path_factory.mktemp("tiny-service"), tiny_model) as running:
        yield start_all(running, tiny_adapters)


def start_all(running: Cluster, adapters: dict[str, Path], *frontend_flags: str, max_sequences: int = 320) -> Service:
    """Scheduler, one worker, one frontend; returns when it serves and the adapters are registered."""
    running.start_scheduler()
    running.start_worker("--dtype", "fp32", "--kv-pool-bytes", str(32 << 20), "--max-sequences", str(max_sequences))
    roots = [flag for folder in adapters.values() for flag in ("--adapter-roots", str(folder))]
    ports = running.start_frontend(*roots, *frontend_flags).ports()
    wait_until(lambda: is_serving(ports["listen"]), 60, "the tiny service serves")
    for name, folder in adapters.items():
        register(ports["listen"], name, folder)
    return Service(ports["listen"], ports["admin_listen"], running)


@pytest.fixture(scope="session")
def real_service(tmp_path_factory) -> Iterator[Service]:
    """What `make serve` starts, on free ports, with a data folder of its own."""
    folder = tmp_path_factory.mktemp("real-service")
    arguments = [
        "loraplex_cli.main",
        "up",
        "--demo-adapters",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(folder / "data"),
    ]
    process = Process("up", [*arguments, "--port-file", str(folder / "up.port.json")], folder)
    try:
        ports = process.ports()
        wait_until(lambda: is_serving(ports["listen"]), 90, "the real service serves")
        yield Service(ports["listen"], ports["admin_listen"], process)
    finally:
        assert process.stop() == 0, process.log()[-3000:]


def run(
    *command: str, timeout_s: float = 120, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command from the repository's root, as a user would type it."""
    import os

    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
    )
