"""Adapters that are loaded, evicted and updated under requests.

``python -m tests.lifecycle.churn --requests 20000``
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loraplex_worker.gguf_folder import demo_model_folder
from tests.faults.history import Submission
from tests.faults.lanes import Lanes, connect
from tests.lifecycle.service import LifecycleService, Registrar, lifecycle_service, registrar, worker_state
from tests.lifecycle.watermark import Watermarks

NUM_ADAPTERS = 64
NUM_RESIDENT = 8
ADAPTER_PAGES = 13
"""Of one watermark adapter: 197 KB, most of it the head's B."""
KV_PAGES = 56
"""For some ten sequences; what is more has to wait."""
POOL_PAGES = NUM_RESIDENT * ADAPTER_PAGES + KV_PAGES
PAUSE_S = 0.1
"""Between two updates."""
HOST_CACHE_BYTES = 16 * 200_000
"""For a quarter of the adapters: the rest comes from the store again."""
_HEADS = ("the quiet river under the north light because ", "seven copper lamps and bread on paper tomorrow ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChurnReport:
    """What a clean run did."""

    num_requests: int
    num_tokens: int
    num_updates: int
    num_loads: int
    """Versions read from the store."""
    num_evictions: int
    """From the device and from the host's memory."""
    num_prefix_tokens: int
    """Found in the prefix cache."""
    max_adapters_in_step: int
    duration_s: float


def submissions(seed: int, names: Sequence[str], num_requests: int) -> Iterator[Submission]:
    """Long beginnings that all adapters share, half of the traffic on eight names, now and then the base model."""
    draw = random.Random(seed)
    for number in range(num_requests):
        name = draw.choice(names[:8] if draw.random() < 0.5 else names)
        yield Submission(
            prompt=draw.choice(_HEADS) * 6 + str(number % 7),
            adapter=None if number % 16 == 0 else name,
            max_tokens=draw.randint(2, 10),
            temperature=0.0,
            top_k=0,
            seed=number + 1,
        )


async def churn(service: LifecycleService, watermarks: Watermarks, *, num_requests: int, seed: int) -> ChurnReport:
    """AssertionError for the first stream that is not exactly one version's."""
    names = [f"mark-{number}" for number in range(NUM_ADAPTERS)]
    begin = time.monotonic()
    async with registrar(service, watermarks) as registry:
        for name in names:
            await registry.point(name)
        async with connect(service.address) as clients:
            lanes = Lanes(clients, submissions(seed, names, num_requests))
            async with asyncio.TaskGroup() as tasks:
                is_over = asyncio.Event()
                tasks.create_task(_update(registry, names, seed, is_over), name="updates")
                await lanes.run()
                is_over.set()
        histories = lanes.histories()
        registry.ledger.assert_clean(histories)
        assert len(histories) == num_requests
        state, scrape = await worker_state(service), service.scrape()
        return ChurnReport(
            num_requests=num_requests,
            num_tokens=sum(len(history.token_ids) for history in histories),
            num_updates=registry.num_versions - NUM_ADAPTERS,
            num_loads=int(scrape.total("loraplex_adapter_loads_total", result="ok")),
            num_evictions=int(scrape.total("loraplex_adapter_evictions_total")),
            num_prefix_tokens=int(scrape.total("loraplex_prefix_cache_tokens_total")),
            max_adapters_in_step=state.max_adapters_in_step,
            duration_s=round(time.monotonic() - begin, 1),
        )


async def _update(registry: Registrar, names: Sequence[str], seed: int, is_over: asyncio.Event) -> None:
    """The eight busy names most of all. An update that has begun is written down, as a stream may have seen it."""
    draw = random.Random(seed)
    while not is_over.is_set():
        await registry.point(draw.choice(names[:8] if draw.random() < 0.7 else names))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    watermarks = Watermarks(demo_model_folder())
    with tempfile.TemporaryDirectory(prefix="loraplex-churn-") as folder:
        model = watermarks.save_model(Path(folder) / "model")
        service = lifecycle_service(
            Path(folder) / "run", model, pool_pages=POOL_PAGES, host_cache_bytes=HOST_CACHE_BYTES
        )
        with service as running:
            report = asyncio.run(churn(running, watermarks, num_requests=given.requests, seed=given.seed))
    sys.stdout.write(json.dumps(dataclasses.asdict(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
