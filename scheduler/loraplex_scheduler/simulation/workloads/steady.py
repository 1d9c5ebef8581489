"""Even and Poisson arrivals of one tenant with fixed lengths: what workloads with several tenants are made of."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from loraplex_scheduler.simulation.workload import SECOND_NS, Arrival


def even_arrivals(
    tenant: str, *, rate: float, duration_s: float, num_prompt: int, num_output: int, adapter: str | None = None
) -> Iterator[Arrival]:
    """One every 1 / ``rate`` seconds, the first at 0."""
    for index in range(math.ceil(rate * duration_s)):
        yield Arrival(
            time_ns=math.floor(index / rate * SECOND_NS),
            tenant=tenant,
            adapter=adapter,
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
        )


def poisson_arrivals(
    tenant: str,
    *,
    rate: float,
    start_s: float,
    end_s: float,
    adapters: Sequence[str],
    lengths: tuple[int, int],
    random: np.random.Generator,
) -> Iterator[Arrival]:
    """Exponential gaps; each request on one of ``adapters``, drawn evenly.

    Args:
        lengths: prompt and output tokens.
    """
    time_s = start_s + random.exponential(1 / rate)
    while time_s < end_s:
        yield Arrival(
            time_ns=math.floor(time_s * SECOND_NS),
            tenant=tenant,
            adapter=adapters[int(random.integers(len(adapters)))],
            num_prompt_tokens=lengths[0],
            num_output_tokens=lengths[1],
        )
        time_s += random.exponential(1 / rate)


def merged(streams: Iterable[Iterable[Arrival]]) -> tuple[Arrival, ...]:
    """In the order of time; equal times in the order of the streams."""
    return tuple(sorted(itertools.chain.from_iterable(streams), key=lambda arrival: arrival.time_ns))
