"""Workload P1 on this machine: the engine alone, then the whole service over gRPC, with 0, 8 and 32 adapters.

Runs alternate, so that a machine that slows down slows everything down; what is published are ratios of medians with
their spread. Writes benchmarks/results/<date>-cpu.json and prints the README's table. ``make bench`` ends within five
minutes on two cores.
"""

import argparse
import asyncio
import dataclasses
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks import in_process
from benchmarks.random_adapters import write_adapter
from benchmarks.regression import Timing, falls, last_result
from benchmarks.workload import NUM_OUTPUT_TOKENS, NUM_PROMPT_TOKENS, NUM_REQUESTS, RANK, Request, p1
from loraplex_adapters.base_shape import BaseShape
from loraplex_cli.service import ServiceSettings, running_service
from loraplex_client import AsyncClient
from loraplex_worker.gguf_folder import demo_model_folder

ADAPTER_COUNTS = (0, 8, 32)
RESULTS = Path(__file__).parent / "results"


def tokens_per_s(timing: Timing) -> float:
    return NUM_REQUESTS * NUM_OUTPUT_TOKENS / timing.median_s


async def over_grpc(client: AsyncClient, requests: Sequence[Request]) -> float:
    """Seconds for all requests at once over one session, token by token."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_ask(client, request)) for request in requests]
    assert all(task.result() == NUM_OUTPUT_TOKENS for task in running)
    return time.perf_counter() - start


async def _ask(client: AsyncClient, request: Request) -> int:
    adapter = None if request.adapter is None else f"bench-{request.adapter}"
    fields = {"temperature": 0.0, "max_tokens": NUM_OUTPUT_TOKENS, "ignore_eos": True}
    output = await client.generate(list(request.prompt_ids), adapter=adapter, **fields)
    return len(output.sequences[0].token_ids)


async def measure(num_rounds: int, folder: Path) -> list[Timing]:
    model = demo_model_folder()
    base = BaseShape.from_folder(model)
    adapters = [folder / f"adapter-{number}" for number in range(max(ADAPTER_COUNTS))]
    for number, path in enumerate(adapters):
        write_adapter(path, base, rank=RANK, seed=number)
    workloads = {count: p1(count, vocab_size=base.vocab_size) for count in ADAPTER_COUNTS}
    alone = measure_alone(num_rounds, model, adapters, folder, workloads)
    return alone + await measure_service(num_rounds, model, adapters, folder, workloads)


def measure_alone(
    num_rounds: int, model: Path, adapters: Sequence[Path], folder: Path, workloads: dict[int, list[Request]]
) -> list[Timing]:
    engine = in_process.load_engine(model, adapters, folder / "store")
    runs: dict[int, list[float]] = {count: [] for count in workloads}
    with Progress() as progress:
        task = progress.add_task("engine alone", total=num_rounds * len(workloads))
        in_process.run(engine, workloads[0])
        for _ in range(num_rounds):
            for count, requests in workloads.items():
                runs[count].append(in_process.run(engine, requests))
                progress.advance(task)
    return [Timing(where="engine", num_adapters=count, runs_s=tuple(times)) for count, times in runs.items()]


async def measure_service(
    num_rounds: int, model: Path, adapters: Sequence[Path], folder: Path, workloads: dict[int, list[Request]]
) -> list[Timing]:
    settings = ServiceSettings(data_dir=folder / "service", model=model)
    runs: dict[int, list[float]] = {count: [] for count in workloads}
    async with running_service(settings, tell=lambda line: None) as service, AsyncClient(service.target) as client:
        for number, path in enumerate(adapters):
            await client.register_adapter(f"bench-{number}", path)
            await client.generate("Load it.", adapter=f"bench-{number}", max_tokens=1)
        with Progress() as progress:
            task = progress.add_task("over gRPC", total=num_rounds * len(workloads))
            for _ in range(num_rounds):
                for count, requests in workloads.items():
                    runs[count].append(await over_grpc(client, requests))
                    progress.advance(task)
    return [Timing(where="service", num_adapters=count, runs_s=tuple(times)) for count, times in runs.items()]


def table(timings: Sequence[Timing]) -> str:
    """Markdown: output tokens per second, and the ratio to the engine without adapters."""
    base_s = next(timing.median_s for timing in timings if timing.where == "engine" and timing.num_adapters == 0)
    lines = [
        f"| {NUM_REQUESTS} requests, {NUM_PROMPT_TOKENS} tokens in, {NUM_OUTPUT_TOKENS} out | adapters (rank {RANK}) "
        "| output tok/s | speed against the engine without LoRA (range over runs) |",
        "|---|---|---|---|",
    ]
    for timing in timings:
        low, high = base_s / max(timing.runs_s), base_s / min(timing.runs_s)
        ratio = f"{base_s / timing.median_s:.2f} ({low:.2f} to {high:.2f})"
        name = "engine alone" if timing.where == "engine" else "service, over gRPC"
        lines.append(f"| {name} | {timing.num_adapters} | {tokens_per_s(timing):.0f} | {ratio} |")
    return "\n".join(lines)


def result_path() -> Path:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return RESULTS / f"{today}-cpu.json"


def write(timings: Sequence[Timing]) -> Path:
    path = result_path()
    machine = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    document = {
        "date": path.name[:10],
        "machine": machine,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timings = asyncio.run(measure(arguments.rounds, Path(folder)))
    print(table(timings))
    if not arguments.no_write:
        print(f"\nwritten to {write(timings)}")
    fallen = falls(last_result(RESULTS, but=result_path()), timings)
    sys.exit("\n".join(["slower than the last committed result:", *map(str, fallen)]) if fallen else 0)


if __name__ == "__main__":
    main()
