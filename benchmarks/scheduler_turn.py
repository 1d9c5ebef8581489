"""What one report of a worker costs the scheduler's core, and how that grows with the queue.

    python -m benchmarks.scheduler_turn [--out benchmarks/results]

32 sequences run on 4 workers, N requests wait for 1,024 adapters, of which some 64 fit on each worker. A report has a
token of each running sequence of its worker; about every eighth has an end, after which another sequence is admitted
and the next adapters are loaded, and a new request comes. Timed is the handling of reports, from the event to the
commands, on one core and without sockets.
"""

import argparse
import gc
import json
import pathlib
import platform
import statistics
import time
from collections import deque

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.config import SECOND_NS, CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.sampling import Sampling

NUM_WORKERS = 4
NUM_RUNNING = 32
NUM_ADAPTERS = 1024
NUM_TENANTS = 16
NUM_OUTPUT = 64
QUEUES = (1_000, 1_024, 3_000, 10_000, 30_000, 100_000)
NUM_REPORTS = 6_000
STEP_NS = 20_000_000


class VirtualWorker:
    """Steps when told to. Loads and evictions are done by the next step."""

    def __init__(self, info: events.WorkerInfo) -> None:
        self.info = info
        self.running: dict[int, list[int]] = {}
        """Of each sequence: tokens that it has, and tokens that it gets."""
        self.answers: deque[events.AdapterChanged] = deque()
        self.num_steps = 0

    def take(self, command: commands.Command) -> None:
        match command:
            case commands.Admit():
                self.running[command.sequence_id] = [len(command.emitted_ids), command.max_tokens]
            case commands.Retire():
                del self.running[command.sequence_id]
            case commands.LoadAdapter():
                self._answer(command.digest, events.WorkerAdapterState.DEVICE)
            case commands.EvictAdapter():
                self._answer(command.digest, events.WorkerAdapterState.EVICTED)
            case _:
                pass

    def _answer(self, digest: str, state: events.WorkerAdapterState) -> None:
        info = self.info
        self.answers.append(
            events.AdapterChanged(worker_id=info.worker_id, epoch=info.epoch, digest=digest, state=state)
        )

    def step(self) -> events.StepReported:
        self.num_steps += 1
        emissions, finishes = [], []
        for sequence_id, (num_tokens, max_tokens) in list(self.running.items()):
            emissions.append(events.Emission(sequence_id=sequence_id, first_index=num_tokens, token_ids=(7,)))
            self.running[sequence_id][0] += 1
            if num_tokens + 1 == max_tokens:
                finishes.append(events.SequenceFinish(sequence_id=sequence_id, reason=events.WorkerFinish.MAX_TOKENS))
                del self.running[sequence_id]
        return events.StepReported(
            worker_id=self.info.worker_id,
            epoch=self.info.epoch,
            step=self.num_steps,
            emissions=tuple(emissions),
            finishes=tuple(finishes),
            num_rows=len(emissions),
            num_decode_rows=len(emissions),
        )


class Bench:
    """A core with its surroundings; time passes by STEP_NS a step of all workers."""

    def __init__(self, num_queued: int, policy: str) -> None:
        self.core = SchedulerCore(
            CoreConfig(policy=policy, max_queued_requests=2 * num_queued + 64, max_inflight_per_tenant=1 << 30)
        )
        self.now_ns = SECOND_NS
        self.num_submitted = 0
        self.durations_ns: list[int] = []
        self.core.handle(events.FrontendConnected(frontend_id="f", incarnation="1"), now_ns=self.now_ns)
        for number in range(NUM_ADAPTERS):
            self._register(number)
        self.workers = {f"w{number}": self._connect(f"w{number}", number + 1) for number in range(NUM_WORKERS)}
        for _ in range(num_queued + NUM_RUNNING):
            self.submit()
        for _ in range(40):
            self.step()

    def _register(self, number: int) -> None:
        event = events.AdapterCommitted(
            tenant=f"t{number % NUM_TENANTS}", name=f"a{number}", number=1, digest=f"d{number}", num_parameters=16_000
        )
        self.core.handle(event, now_ns=self.now_ns)

    def _connect(self, worker_id: str, epoch: int) -> VirtualWorker:
        info = events.WorkerInfo(
            worker_id=worker_id,
            epoch=epoch,
            device="cpu",
            num_pages=64 + 8 * 16,
            page_size=16,
            page_bytes=32_000,
            adapter_parameter_bytes=2,
            max_sequences=NUM_RUNNING // NUM_WORKERS,
            max_step_tokens=512,
            max_context_tokens=2048,
            vocab_size=1 << 16,
        )
        worker = VirtualWorker(info)
        self.workers = {**getattr(self, "workers", {}), worker_id: worker}
        self._obey(self.core.handle(events.WorkerConnected(info=info), now_ns=self.now_ns))
        return worker

    def submit(self) -> None:
        self.num_submitted += 1
        number = self.num_submitted * 7919 % NUM_ADAPTERS
        event = events.Submitted(
            key=events.RequestKey("f", self.num_submitted),
            tenant=f"t{number % NUM_TENANTS}",
            request_id=f"r{self.num_submitted}",
            prompt_ids=(1,) * 100,
            adapters=(AdapterPart(name=f"a{number}"),),
            sampling=Sampling(seed=1),
            max_tokens=NUM_OUTPUT // 2 + self.num_submitted * 31 % NUM_OUTPUT,
        )
        self._obey(self.core.handle(event, now_ns=self.now_ns))

    def step(self) -> None:
        """One step of each worker, one tick each fifty milliseconds, a new request for each that has ended."""
        self.now_ns += STEP_NS
        for worker in self.workers.values():
            while worker.answers:
                self._obey(self.core.handle(worker.answers.popleft(), now_ns=self.now_ns))
            report = worker.step()
            begin = time.perf_counter_ns()
            result = self.core.handle_all((report,), now_ns=self.now_ns)
            self.durations_ns.append(time.perf_counter_ns() - begin)
            self._obey(result)
            for _ in report.finishes:
                self.submit()
        if self.now_ns // 50_000_000 != (self.now_ns - STEP_NS) // 50_000_000:
            self._obey(self.core.handle(events.Tick(), now_ns=self.now_ns))

    def _obey(self, result: list[commands.Command]) -> None:
        for command in result:
            if isinstance(command, commands.WorkerCommand):
                self.workers[command.worker_id].take(command)


def measure(num_queued: int, policy: str, num_reports: int) -> dict[str, float]:
    bench = Bench(num_queued, policy)
    bench.core.check()
    bench.durations_ns.clear()
    gc.collect()
    gc.freeze()
    while len(bench.durations_ns) < num_reports:
        bench.step()
    gc.unfreeze()
    bench.core.check()
    micros = sorted(duration / 1e3 for duration in bench.durations_ns)
    statistics_ = bench.core.statistics()
    return {
        "num_queued": num_queued,
        "num_running": sum(worker.num_running_sequences for worker in statistics_.workers),
        "median_us": round(statistics.median(micros), 1),
        "p90_us": round(micros[int(0.90 * len(micros))], 1),
        "p99_us": round(micros[int(0.99 * len(micros))], 1),
        "mean_us": round(statistics.fmean(micros), 1),
    }


def plot(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("median_us", "mean_us", "p99_us"):
        axes.plot([row["num_queued"] for row in rows], [row[name] for row in rows], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queued requests")
    axes.set_ylabel("microseconds a report")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="loraplex")
    parser.add_argument("--reports", type=int, default=NUM_REPORTS)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    rows = []
    for num_queued in QUEUES:
        rows.append(measure(num_queued, options.policy, options.reports))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        result = {"policy": options.policy, "python": platform.python_version(), "num_reports": options.reports}
        (options.out / "scheduler_turn.json").write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
        plot(rows, options.out / "scheduler_turn.png")


if __name__ == "__main__":
    main()
