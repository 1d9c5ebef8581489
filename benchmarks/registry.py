"""The registry under ten thousand names, and an adapter of 50 MB from its folder to its first token.

Writes benchmarks/results/<date>-registry.json and prints a table:
``PYTHONPATH=. python -m benchmarks.registry``, about five minutes on two cores.
"""

import argparse
import asyncio
import dataclasses
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.random_adapters import write_adapter
from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_adapters.base_shape import BaseShape
from loraplex_cli.service import ServiceSettings, running_service
from loraplex_client import AsyncClient
from loraplex_contract.channel import CLIENT_OPTIONS
from loraplex_worker.gguf_folder import demo_model_folder

RESULTS = Path(__file__).parent / "results"
NUM_ARTIFACTS = 16
NUM_AT_ONCE = 8
NUM_LARGE = 5
LARGE_RANK = 86
"""50 MB in float16 on SmolLM2-135M."""
PAGE_SIZES = (50, 200, 1000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of every run of one thing, and its goal."""

    what: str
    runs_s: tuple[float, ...]
    goal_s: float | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.runs_s)

    @property
    def p99_s(self) -> float:
        """Of few runs: the longest."""
        return sorted(self.runs_s)[min(len(self.runs_s) - 1, int(0.99 * len(self.runs_s)))]


async def large_adapters(client: AsyncClient, base: BaseShape, folder: Path) -> list[Measured]:
    """Registered, then asked for one token: nothing of them is on a worker before that."""
    registering, cold, warm = [], [], []
    num_bytes = 0
    for number in range(NUM_LARGE):
        write_adapter(folder / f"large-{number}", base, rank=LARGE_RANK, seed=1_000 + number)
        began_s = time.perf_counter()
        adapter = await client.register_adapter(f"large-{number}", folder / f"large-{number}")
        registered_s = time.perf_counter()
        num_bytes = adapter.version.report.num_bytes
        await client.generate("Hello", adapter=f"large-{number}", max_tokens=1)
        cold_s = time.perf_counter()
        await client.generate("Hello", adapter=f"large-{number}", max_tokens=1)
        registering.append(registered_s - began_s)
        cold.append(cold_s - began_s)
        warm.append(time.perf_counter() - cold_s)
    size = f"{num_bytes / 1e6:.0f} MB"
    return [
        Measured(what=f"register {size} from local disk", runs_s=tuple(registering), goal_s=1.0),
        Measured(what=f"register {size} to its first token", runs_s=tuple(cold), goal_s=1.0),
        Measured(what="one token once it is loaded", runs_s=tuple(warm)),
    ]


async def many_names(client: AsyncClient, base: BaseShape, folder: Path, num_names: int) -> Measured:
    """Each a registration of its own; they share a few artifacts, which the store then has."""
    for number in range(NUM_ARTIFACTS):
        write_adapter(folder / f"small-{number}", base, rank=1, seed=number)
    numbers = iter(range(num_names))
    runs = []

    async def lane() -> None:
        for number in numbers:
            began_s = time.perf_counter()
            await client.register_adapter(
                f"name-{number:05}", folder / f"small-{number % NUM_ARTIFACTS}", labels={"shard": f"{number % 100}"}
            )
            runs.append(time.perf_counter() - began_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(NUM_AT_ONCE):
            tasks.create_task(lane())
    return Measured(what=f"register one of {num_names} small ones, {NUM_AT_ONCE} at once", runs_s=tuple(runs))


async def pages(target: str, num_names: int) -> list[Measured]:
    """Every page of the whole list, for each size; then the pages of one label."""
    async with grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
        stub: Any = adapter_pb2_grpc.AdapterServiceStub(channel)
        found = []
        for size in PAGE_SIZES:
            runs, num_listed = await _walk(stub, adapter_pb2.ListAdaptersRequest(page_size=size, name_prefix="name-"))
            assert num_listed == num_names, num_listed
            found.append(Measured(what=f"a page of {size} of {num_names}", runs_s=runs, goal_s=0.05))
        request = adapter_pb2.ListAdaptersRequest(page_size=50, labels={"shard": "7"})
        runs, num_listed = await _walk(stub, request)
        assert num_listed == sum(number % 100 == 7 for number in range(num_names)), num_listed
        return [*found, Measured(what=f"a page of 50 with one label, of {num_names}", runs_s=runs, goal_s=0.05)]


async def _walk(stub: Any, request: adapter_pb2.ListAdaptersRequest) -> tuple[tuple[float, ...], int]:
    runs, num_listed = [], 0
    while True:
        began_s = time.perf_counter()
        response = await stub.ListAdapters(request)
        runs.append(time.perf_counter() - began_s)
        num_listed += len(response.adapters)
        request.page_token = response.next_page_token
        if not request.page_token:
            return tuple(runs), num_listed


async def measure(num_names: int, folder: Path) -> list[Measured]:
    model = demo_model_folder()
    base = BaseShape.from_folder(model)
    settings = ServiceSettings(data_dir=folder / "service", model=model)
    async with running_service(settings, tell=lambda line: None) as service, AsyncClient(service.target) as client:
        large = await large_adapters(client, base, folder)
        many = await many_names(client, base, folder, num_names)
        listed = await pages(service.target, num_names)
    async with running_service(settings, tell=lambda line: None) as service:
        after = await pages(service.target, num_names)
    again = [dataclasses.replace(one, what=f"after a restart: {one.what}") for one in after]
    return [*large, many, *listed, *again]


def table(measured: Sequence[Measured]) -> str:
    lines = ["| what | runs | median | P99 | goal |", "|---|---|---|---|---|"]
    for one in measured:
        goal = (
            "" if one.goal_s is None else f"{'met' if one.p99_s <= one.goal_s else 'MISSED'}: {one.goal_s * 1e3:g} ms"
        )
        lines.append(
            f"| {one.what} | {len(one.runs_s)} | {one.median_s * 1e3:.1f} ms | {one.p99_s * 1e3:.1f} ms | {goal} |"
        )
    return "\n".join(lines)


def _verdict(one: Measured) -> str:
    """By the P99, not the median."""
    if one.goal_s is None:
        return ""
    return f"{'met' if one.p99_s <= one.goal_s else 'MISSED'}: {one.goal_s * 1e3:g} ms"


def write(measured: Sequence[Measured]) -> Path:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{today}-registry.json"
    machine: dict[str, object] = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    # On a machine with other work the figures are of both.
    machine["load_average_at_end"] = os.getloadavg()
    rows = [
        {
            "what": one.what,
            "num_runs": len(one.runs_s),
            "median_s": one.median_s,
            "p99_s": one.p99_s,
            "goal_s": one.goal_s,
        }
        for one in measured
    ]
    path.write_text(json.dumps({"date": today, "machine": machine, "measured": rows}, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--no-write", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measure(arguments.adapters, Path(folder)))
    print(table(measured))
    if not arguments.no_write:
        print(f"\nwritten to {write(measured)}")


if __name__ == "__main__":
    main()
