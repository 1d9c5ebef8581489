"""One adapter becomes popular from one moment to the next."""

from typing import Final

import numpy as np

from loraplex_scheduler.simulation.presets import CPU
from loraplex_scheduler.simulation.workload import Workload
from loraplex_scheduler.simulation.workloads.slora_synthetic import adapter_name
from loraplex_scheduler.simulation.workloads.steady import merged, poisson_arrivals

NUM_ADAPTERS: Final = 64
RANK: Final = 16
NUM_WORKERS: Final = 4
_LENGTHS: Final = (64, 32)


def flash_crowd_workload(*, seed: int) -> Workload:
    """Four workers at half load over 64 adapters; for 30 s one more adapter gets as much as they can do in all."""
    random = np.random.default_rng(seed)
    names = [adapter_name(index) for index in range(NUM_ADAPTERS)]
    background = poisson_arrivals(
        "many", rate=6.0, start_s=0.0, end_s=150.0, adapters=names, lengths=_LENGTHS, random=random
    )
    crowd = poisson_arrivals(
        "crowd", rate=12.0, start_s=60.0, end_s=90.0, adapters=("hot",), lengths=_LENGTHS, random=random
    )
    return Workload(
        name="flash-crowd",
        title="A flash crowd on one adapter, four workers",
        preset=CPU.with_pool(num_adapters=24, rank=RANK, num_kv_tokens=32 * 128),
        arrivals=merged([background, crowd]),
        ranks=dict.fromkeys([*names, "hot"], RANK),
        num_workers=NUM_WORKERS,
    )
