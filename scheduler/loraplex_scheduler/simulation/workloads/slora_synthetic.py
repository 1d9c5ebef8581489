"""S-LoRA's synthetic workload (benchmarks/trace.py of arXiv 2311.03285), draw for draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from loraplex_scheduler.simulation.workload import SECOND_NS, Arrival

SEED: Final = 42
"""Of the published traces."""
RANKS_S1: Final = (8,)
RANKS_S2: Final = (64, 32, 16, 8)
RANKS_S4: Final = (64, 32, 16)


def slora_arrivals(
    *,
    num_adapters: int,
    rate: float,
    duration_s: float,
    alpha: float = 1.0,
    cv: float = 1.0,
    length_range: tuple[int, int] = (8, 512),
    seed: int = SEED,
    tenant: str = "tenant",
) -> tuple[Arrival, ...]:
    """Popularity, input lengths, output lengths, gaps, drawn in this order from one legacy generator.

    Args:
        rate: requests per second.
        alpha: 1 is uniform; smaller is more skewed to the first adapters.
        cv: coefficient of variation of the gamma-distributed gaps.
        length_range: of input and output, the end exclusive.
    """
    random = np.random.RandomState(seed)
    total = int(rate * duration_s)
    indices = np.floor(random.power(alpha, total) * num_adapters).astype(int)
    inputs = random.randint(*length_range, total)
    outputs = random.randint(*length_range, total)
    times = np.cumsum(random.gamma(1 / cv**2, cv**2 / rate, total))
    return tuple(
        Arrival(
            time_ns=math.floor(time * SECOND_NS),
            tenant=tenant,
            adapter=adapter_name(int(index)),
            num_prompt_tokens=int(num_input),
            num_output_tokens=int(num_output),
        )
        for time, index, num_input, num_output in zip(times, indices, inputs, outputs, strict=True)
    )


def adapter_name(index: int) -> str:
    return f"a{index:04d}"


def cycled_ranks(num_adapters: int, ranks: Sequence[int]) -> Mapping[str, int]:
    """The list of adapters cycles the setting's ranks."""
    return {adapter_name(index): ranks[index % len(ranks)] for index in range(num_adapters)}
