"""A fake frontend on the test's loop, and one in a process of its own for the synchronous clients."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_frontend import FakeFrontend

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Addresses:
    target: str
    admin_target: str


@pytest.fixture
async def frontend() -> AsyncIterator[FakeFrontend]:
    async with FakeFrontend() as server:
        yield server


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """gRPC wants one event loop a process, and the synchronous client has its own: so this server is apart."""
    port_file = tmp_path_factory.mktemp("fake") / "ports.json"
    command = [sys.executable, "-m", "tests.fakes.fake_frontend", "--port-file", str(port_file)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        ports = read_ports(port_file, process)
        yield Addresses(ports["listen"], ports["admin_listen"])
    finally:
        process.terminate()
        assert process.wait(10) == 0


def read_ports(port_file: Path, process: "subprocess.Popen[bytes]", timeout_s: float = 20.0) -> dict[str, str]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if port_file.exists():
            found: dict[str, str] = json.loads(port_file.read_text())
            return found
        assert process.poll() is None, f"ended with {process.returncode}"
        time.sleep(0.02)
    raise AssertionError(f"no port file after {timeout_s} s")


def adapter_folder(parent: Path, name: str) -> Path:
    """Enough of an adapter for the fake, which digests whatever files there are."""
    folder = parent / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"name": name}))
    return folder


def is_gone(pid: int) -> bool:
    """Ended, or waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(question: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not question():
        assert time.monotonic() < deadline, f"not after {timeout_s} s"
        time.sleep(0.01)
