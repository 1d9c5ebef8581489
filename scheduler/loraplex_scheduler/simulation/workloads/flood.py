"""A tenant that asks for a hundred times what each of the others does."""

import dataclasses
from typing import Final

import numpy as np

from loraplex_scheduler.simulation.presets import CPU
from loraplex_scheduler.simulation.workload import SECOND_NS, Workload
from loraplex_scheduler.simulation.workloads.steady import merged, poisson_arrivals

NUM_OTHERS: Final = 8
FLOOD_FACTOR: Final = 100
RANK: Final = 16
_RATE: Final = 0.12
"""Of each of the others: together some 45 % of what the machine can do."""
_LENGTHS: Final = (128, 32)
_DURATION_S: Final = 600
_MAX_STEP_TOKENS: Final = 128
"""A prompt a step. With the worker's own 512 a step takes 1.5 s here, which alone is more than the goal allows."""


def flood_workload(*, has_flood: bool, seed: int) -> Workload:
    """Eight tenants with two adapters each for ten minutes; with the flood, a ninth one. Only the eight are watched."""
    others = [f"tenant-{index}" for index in range(NUM_OTHERS)]
    streams = [
        poisson_arrivals(
            tenant,
            rate=_RATE,
            start_s=0.0,
            end_s=_DURATION_S,
            adapters=("one", "two"),
            lengths=_LENGTHS,
            random=np.random.default_rng((seed, index)),
        )
        for index, tenant in enumerate(others)
    ]
    if has_flood:
        flooder = poisson_arrivals(
            "flooder",
            rate=FLOOD_FACTOR * _RATE,
            start_s=0.0,
            end_s=_DURATION_S,
            adapters=("one", "two"),
            lengths=_LENGTHS,
            random=np.random.default_rng((seed, NUM_OTHERS)),
        )
        streams.append(flooder)
    return Workload(
        name="flood" if has_flood else "flood-without",
        title="Eight tenants and one that floods, 100x" if has_flood else "The eight tenants of the flood, alone",
        preset=dataclasses.replace(CPU, max_step_tokens=_MAX_STEP_TOKENS),
        arrivals=merged(streams),
        ranks={"one": RANK, "two": RANK},
        horizon_ns=_DURATION_S * SECOND_NS,
        watched_tenants=frozenset(others),
    )
