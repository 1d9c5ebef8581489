"""What it costs to have many adapters: 1,024 registered names, asked for by Zipf's law, against one; then a small pool.

Each cell answers the same prompts over gRPC, 32 at a time; cells take turns. "4x oversubscribed" is a second service
whose page pool leaves the adapters a quarter of the bytes that the names in the trace need. Writes
benchmarks/results/<date>-population.json: ``PYTHONPATH=. python -m benchmarks.population``, about ten minutes.
"""

import argparse
import asyncio
import dataclasses
import datetime
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.random_adapters import write_adapter
from loraplex_adapters.base_shape import BaseShape
from loraplex_cli.service import ServiceSettings, running_service
from loraplex_client import AsyncClient
from loraplex_worker.gguf_folder import demo_model_folder

RESULTS = Path(__file__).parent / "results"
NUM_AT_ONCE = 32
NUM_PROMPT_TOKENS = 64
NUM_OUTPUT_TOKENS = 32
RANK = 2
"""1.2 MB an adapter on SmolLM2-135M: a thousand fit on a laptop's disk."""
ADAPTER_BYTES = 4 * 611_000 // 2
KV_BYTES = 64 << 20
"""Room for the sequences that run at once, with some to spare."""
POOL_VARIABLE = "LORAPLEX_WORKER__KV_POOL_BYTES"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    prompt_ids: tuple[int, ...]
    adapter: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cell once: tokens per second and each request's seconds to its first token."""

    cell: str
    tokens_per_s: float
    ttft_s: tuple[float, ...]

    @property
    def p99_ttft_s(self) -> float:
        return sorted(self.ttft_s)[int(0.99 * (len(self.ttft_s) - 1))]


def zipf_trace(num_names: int, num_requests: int, vocab_size: int, seed: int = 7) -> list[Ask]:
    """Name k is asked for in proportion to 1/k; the prompts are the same for every ``num_names``."""
    prompts, names = random.Random(seed), random.Random(seed + 1)
    weights = [1 / (rank + 1) for rank in range(num_names)]
    return [
        Ask(
            prompt_ids=tuple(prompts.randrange(100, vocab_size) for _ in range(NUM_PROMPT_TOKENS)),
            adapter=f"zipf-{names.choices(range(num_names), weights)[0]:04}",
        )
        for _ in range(num_requests)
    ]


async def answer(client: AsyncClient, cell: str, trace: Sequence[Ask]) -> Run:
    waiting: Iterator[Ask] = iter(trace)
    ttft_s: list[float] = []

    async def lane() -> None:
        ttft_s.extend([await _first_token_s(client, ask) for ask in waiting])

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(NUM_AT_ONCE):
            tasks.create_task(lane())
    took_s = time.perf_counter() - began_s
    return Run(cell=cell, tokens_per_s=len(trace) * NUM_OUTPUT_TOKENS / took_s, ttft_s=tuple(ttft_s))


async def _first_token_s(client: AsyncClient, ask: Ask) -> float:
    fields = {"temperature": 0.0, "max_tokens": NUM_OUTPUT_TOKENS, "ignore_eos": True}
    began_s = time.perf_counter()
    first_s, num_tokens = 0.0, 0
    async with client.stream(list(ask.prompt_ids), adapter=ask.adapter, **fields) as stream:
        async for delta in stream:
            first_s = first_s or time.perf_counter() - began_s
            num_tokens += len(delta.token_ids)
    assert num_tokens == NUM_OUTPUT_TOKENS, num_tokens
    return first_s


async def register(client: AsyncClient, base: BaseShape, folder: Path, num_names: int) -> None:
    numbers = iter(range(num_names))

    async def lane() -> None:
        for number in numbers:
            path = folder / f"adapter-{number}"
            await asyncio.to_thread(write_adapter, path, base, rank=RANK, seed=number)
            await client.register_adapter(f"zipf-{number:04}", path)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(lane())


async def measure(num_names: int, num_requests: int, num_rounds: int, folder: Path) -> list[Run]:
    model = demo_model_folder()
    base = BaseShape.from_folder(model)
    settings = ServiceSettings(data_dir=folder / "service", model=model)
    traces = {f"{count} registered": zipf_trace(count, num_requests, base.vocab_size) for count in (1, num_names)}
    many = traces[f"{num_names} registered"]
    runs: list[Run] = []
    async with running_service(settings, tell=print) as service, AsyncClient(service.target) as client:
        await register(client, base, folder / "adapters", num_names)
        await answer(client, "warm-up", traces["1 registered"])
        for _ in range(num_rounds):
            for cell, trace in traces.items():
                runs.append(await answer(client, cell, trace))
    num_used = len({ask.adapter for ask in many})
    os.environ[POOL_VARIABLE] = str(KV_BYTES + num_used * ADAPTER_BYTES // 4)
    async with running_service(settings, tell=print) as service, AsyncClient(service.target) as client:
        await answer(client, "warm-up", traces["1 registered"])
        for _ in range(num_rounds):
            runs.append(await answer(client, "1 registered, small pool", traces["1 registered"]))
            runs.append(await answer(client, f"{num_names} registered, 4x oversubscribed", many))
    return runs


def table(runs: Sequence[Run]) -> str:
    cells = list(dict.fromkeys(run.cell for run in runs))
    lines = [
        "| cell | tok/s, median (range) | P99 TTFT, median | first tokens against one adapter |",
        "|---|---|---|---|",
    ]
    for cell in cells:
        mine = [run for run in runs if run.cell == cell]
        rates = sorted(run.tokens_per_s for run in mine)
        against = cells[cells.index(cell) // 2 * 2]
        ratio = statistics.median(rates) / statistics.median(run.tokens_per_s for run in runs if run.cell == against)
        wait_s = statistics.median(run.p99_ttft_s for run in mine)
        wait_ratio = wait_s / statistics.median(run.p99_ttft_s for run in runs if run.cell == against)
        lines.append(
            f"| {cell} | {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) | {wait_s * 1e3:.0f} ms "
            f"| speed {ratio:.2f}x, P99 TTFT {wait_ratio:.2f}x |"
        )
    return "\n".join(lines)


def write(runs: Sequence[Run]) -> Path:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{today}-population.json"
    machine = {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    rows = [{"cell": run.cell, "tokens_per_s": run.tokens_per_s, "p99_ttft_s": run.p99_ttft_s} for run in runs]
    path.write_text(json.dumps({"date": today, "machine": machine, "runs": rows}, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = asyncio.run(measure(arguments.adapters, arguments.requests, arguments.rounds, Path(folder)))
    print(table(runs))
    if not arguments.no_write:
        print(f"\nwritten to {write(runs)}")


if __name__ == "__main__":
    main()
