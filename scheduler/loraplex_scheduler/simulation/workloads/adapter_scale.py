"""One adapter against a thousand, where memory holds them all."""

from typing import Final

from loraplex_scheduler.simulation.presets import CPU, H100
from loraplex_scheduler.simulation.workload import Workload
from loraplex_scheduler.simulation.workloads.oversubscription import CAPACITY, LENGTH_RANGE
from loraplex_scheduler.simulation.workloads.slora_synthetic import cycled_ranks, slora_arrivals

RANK: Final = 16
MAX_ADAPTERS: Final = 1024


def cpu_scale_workload(*, num_adapters: int, seed: int) -> Workload:
    """P2 of the project's notes: W1 with lengths U[8, 128), alpha 1, 70 % of capacity.

    For 240 s rather than 60: that would be a hundred requests.
    """
    arrivals = slora_arrivals(
        num_adapters=num_adapters, rate=0.7 * CAPACITY, duration_s=240, length_range=LENGTH_RANGE, seed=seed
    )
    return Workload(
        name=f"scale-cpu-{num_adapters}",
        title=f"P2, {num_adapters} adapters registered",
        preset=CPU.with_pool(num_adapters=MAX_ADAPTERS, rank=RANK, num_kv_tokens=23_000),
        arrivals=arrivals,
        ranks=cycled_ranks(num_adapters, (RANK,)),
    )


def h100_scale_workload(*, num_adapters: int, seed: int) -> Workload:
    """S-LoRA's breakdown for the H100: alpha 0.8, 20 requests/s, 60 s, rank 8."""
    arrivals = slora_arrivals(num_adapters=num_adapters, rate=20, duration_s=60, alpha=0.8, seed=seed)
    return Workload(
        name=f"scale-h100-{num_adapters}",
        title=f"S-LoRA's H100 breakdown, {num_adapters} adapters",
        preset=H100,
        arrivals=arrivals,
        ranks=cycled_ranks(num_adapters, (8,)),
    )
