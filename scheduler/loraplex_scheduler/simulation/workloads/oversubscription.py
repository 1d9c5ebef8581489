"""More adapters than fit: P4 of the project's notes, the cliff of other systems.

The pool holds 32 adapters of rank 16 and the KV of 32 sequences; requests go round robin over 32 adapters (1x) or 128
(4x), so that with 4x the adapter that is asked for next is always the one that was used longest ago.
"""

import dataclasses
from typing import Final

from loraplex_scheduler.simulation.presets import CPU
from loraplex_scheduler.simulation.workload import Arrival, Workload
from loraplex_scheduler.simulation.workloads.slora_synthetic import adapter_name, slora_arrivals

NUM_SLOTS: Final = 32
RANK: Final = 16
FACTOR: Final = 4
LENGTH_RANGE: Final = (8, 128)
CAPACITY: Final = 2.45
"""Requests of these lengths that the preset serves in a second, by a saturated run over 32 adapters."""


def oversubscription_workload(*, factor: int, load: float, seed: int) -> Workload:
    """Args:
    factor: adapters over slots.
    load: arrivals over capacity; above 1 the throughput is the machine's.
    """
    duration_s = 300.0
    arrivals = slora_arrivals(
        num_adapters=1, rate=load * CAPACITY, duration_s=duration_s, length_range=LENGTH_RANGE, seed=seed
    )
    num_adapters = factor * NUM_SLOTS
    suffix = "-saturated" if load > 1 else ""
    return Workload(
        name=f"oversubscription-{factor}x{suffix}",
        title=f"{num_adapters} adapters round robin over {NUM_SLOTS} slots, load {load:g}",
        preset=CPU.with_pool(num_adapters=NUM_SLOTS, rank=RANK, num_kv_tokens=32 * 128),
        arrivals=round_robin(arrivals, num_adapters),
        ranks=dict.fromkeys(map(adapter_name, range(num_adapters)), RANK),
    )


def round_robin(arrivals: tuple[Arrival, ...], num_adapters: int) -> tuple[Arrival, ...]:
    return tuple(
        dataclasses.replace(arrival, adapter=adapter_name(index % num_adapters))
        for index, arrival in enumerate(arrivals)
    )
