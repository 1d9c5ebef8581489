"""From the command ``loraplex up`` to the first token, and the memory of the whole stack, on the demo model.

The first start of a round fills the caches, the others are what is published. Writes
benchmarks/results/<date>-start.json: ``PYTHONPATH=. python -m benchmarks.start``, about a minute. Linux: reads /proc.
"""

import argparse
import asyncio
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workload import NUM_OUTPUT_TOKENS, p1
from loraplex_client import AsyncClient

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    serving_s: float
    first_token_s: float
    """From the command."""
    peak_rss_bytes: dict[str, int]
    """Of each process, after a batch of 32 requests; pages that processes share count in each."""
    pss_bytes: int
    """Of all together, shared pages once."""


async def start(data_dir: Path) -> Start:
    port_file = data_dir / "ports.json"
    began_s = time.perf_counter()
    process = _launch(data_dir, port_file)
    try:
        while not port_file.exists():
            assert process.poll() is None, "loraplex up ended"
            assert time.perf_counter() - began_s < TIMEOUT_S, "loraplex up is not ready"
            await asyncio.sleep(0.01)
        serving_s = time.perf_counter() - began_s
        async with AsyncClient(json.loads(port_file.read_text())["listen"]) as client:
            await client.generate("Hello", max_tokens=1)
            first_token_s = time.perf_counter() - began_s
            await _batch(client)
        pids = [process.pid, *_descendants(process.pid)]
        peaks = {f"{_name(pid)} {pid}": _kib(pid, "status", "VmHWM:") for pid in pids}
        pss_bytes = sum(_kib(pid, "smaps_rollup", "Pss:") for pid in pids)
        return Start(serving_s=serving_s, first_token_s=first_token_s, peak_rss_bytes=peaks, pss_bytes=pss_bytes)
    finally:
        process.terminate()
        process.wait(30)


def _launch(data_dir: Path, port_file: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "loraplex_cli.main", "up", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir)]
    return subprocess.Popen([*command, "--port-file", str(port_file)], stdout=subprocess.DEVNULL)


async def _batch(client: AsyncClient) -> None:
    fields = {"temperature": 0.0, "max_tokens": NUM_OUTPUT_TOKENS, "ignore_eos": True}
    async with asyncio.TaskGroup() as tasks:
        for request in p1(0, vocab_size=49_000):
            tasks.create_task(client.generate(list(request.prompt_ids), **fields))


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [found for child in children for found in (child, *_descendants(child))]


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return next((word for word in words if word.startswith("loraplex_")), "helper")


def _kib(pid: int, file: str, field: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def table(starts: Sequence[Start]) -> str:
    token_s = sorted(one.first_token_s for one in starts)
    lines = [
        f"serving after {statistics.median(one.serving_s for one in starts):.2f} s, first token after "
        f"{statistics.median(token_s):.2f} s ({token_s[0]:.2f} to {token_s[-1]:.2f}) of the command",
        f"all processes {max(one.pss_bytes for one in starts) / 1e9:.2f} GB with shared pages once; peaks (RSS):",
    ]
    lines += [f"  {name}: {peak / 1e6:.0f} MB" for name, peak in starts[-1].peak_rss_bytes.items()]
    return "\n".join(lines)


def write(starts: Sequence[Start]) -> Path:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{today}-start.json"
    machine = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    document = {"date": today, "machine": machine, "starts": [dataclasses.asdict(one) for one in starts]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


async def measure(num_starts: int, data_dir: Path) -> list[Start]:
    await start(data_dir)
    return [await start(data_dir) for _ in range(num_starts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="only print the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        starts = asyncio.run(measure(arguments.starts, Path(folder)))
    print(table(starts))
    if not arguments.no_write:
        print(f"\nwritten to {write(starts)}")


if __name__ == "__main__":
    main()
