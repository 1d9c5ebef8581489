"""Many streams, and workers that are killed and frozen under them: ``python -m tests.faults.soak --blows 50 --seed 1``.

Every stream that ends is held against the same submission of an undisturbed run, by its recorded history.
"""

import argparse
import asyncio
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from loraplex_worker.gguf_folder import demo_model_folder
from tests.e2e.processes import cluster
from tests.e2e.tiny_model import save_tiny_adapters, save_tiny_model
from tests.faults.blow import Blow, BlowResult, draw_blows
from tests.faults.checker import Golden, Losses, PoisonRule
from tests.faults.history import History, Submission
from tests.faults.lanes import Lanes, connect
from tests.faults.report import SoakReport, judge
from tests.faults.service import ClusterView, FaultService, strike, watch
from tests.faults.workload import catalogue

WORKERS = ("one", "two")
POISON = PoisonRule(error_reason="REQUEST_POISONED", min_losses=2)


async def golden_run(
    address: str, submissions: Sequence[Submission], digests: Mapping[str, str]
) -> dict[Submission, Golden]:
    """What each gives while nobody is hit. The histories are checked against themselves: order, echo, usage."""
    async with connect(address) as clients:
        lanes = Lanes(clients, iter(submissions))
        await lanes.run()
    histories = lanes.histories()
    golden = {}
    for history in histories:
        name = history.submission.adapter
        adapters = () if name is None else ((name, digests[name]),)
        assert len(history.token_ids) == history.submission.max_tokens, history.terminal
        golden[history.submission] = Golden(token_ids=history.token_ids, text=history.text, adapters=adapters)
    judge(histories, golden).assert_clean()
    assert len({entry.token_ids[:8] for entry in golden.values()}) > len(golden) // 2, "the answers hardly differ"
    return golden


async def run_under_blows(
    service: FaultService, view: ClusterView, submissions: Sequence[Submission], blows: Sequence[Blow]
) -> tuple[list[History], list[BlowResult]]:
    """All lanes are busy from before the first blow until after the last."""
    async with connect(service.address) as clients:
        lanes = Lanes(clients, itertools.cycle(submissions))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lanes.run(), name="lanes")
            results: list[BlowResult] = []
            for blow in blows:
                await lanes.wait_for_turnover()
                result = await strike(service, view, blow)
                results.append(result)
            lanes.stop()
    return lanes.histories(), results


async def soak(service: FaultService, *, num_blows: int, seed: int) -> SoakReport:
    """Golden run, blows, and the look at what is left. AssertionError if leases or pages did not come back."""
    submissions = catalogue(seed, sorted(service.digests))
    begin = time.monotonic()
    async with watch(service) as view:
        golden = await golden_run(service.address, submissions, service.digests)
        histories, results = await run_under_blows(service, view, submissions, draw_blows(seed, num_blows, WORKERS))
        await view.wait_until_idle()
    losses_ns = service.losses_ns()
    verdict = judge(histories, golden, poison=POISON, losses=Losses(at_ns=losses_ns))
    return SoakReport.of(
        seed=seed,
        verdict=verdict,
        blows=results,
        num_losses=len(losses_ns),
        duration_s=time.monotonic() - begin,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--blows", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/<date>-faults.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loraplex-soak-") as name:
        folder = Path(name)
        (folder / "adapters").mkdir()
        model = save_tiny_model(folder / "model", demo_model_folder())
        adapters = save_tiny_adapters(model, folder / "adapters")
        with cluster(folder / "service", model) as running:
            service = FaultService(running, adapters, WORKERS)
            report = asyncio.run(soak(service, num_blows=arguments.blows, seed=arguments.seed))
            exit_codes = service.stop()
    report = dataclasses.replace(report, exit_codes=exit_codes)
    sys.stdout.write(report.table())
    if arguments.write:
        sys.stdout.write(f"written to {report.write()}\n")
    return 0 if report.is_passed else 1


if __name__ == "__main__":
    sys.exit(main())
