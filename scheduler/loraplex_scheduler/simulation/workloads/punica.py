"""Punica's four popularity patterns and its lengths (arXiv 2310.18547)."""

import enum
import math
from typing import Final

import numpy as np

from loraplex_scheduler.simulation.workload import Arrival
from loraplex_scheduler.simulation.workloads.slora_synthetic import adapter_name

SEED: Final = 0xABCDABCD987


class Pattern(enum.Enum):
    DISTINCT = "distinct"
    UNIFORM = "uniform"
    SKEWED = "skewed"
    IDENTICAL = "identical"


def group_sizes(pattern: Pattern, total: int) -> list[int]:
    """Requests of each adapter, the largest group first."""
    match pattern:
        case Pattern.DISTINCT:
            return [1] * total
        case Pattern.IDENTICAL:
            return [total]
        case Pattern.UNIFORM:
            num_groups = math.ceil(math.sqrt(total))
            size, num_larger = divmod(total, num_groups)
            return [size + 1] * num_larger + [size] * (num_groups - num_larger)
        case Pattern.SKEWED:
            return _skewed(total)


def _skewed(total: int) -> list[int]:
    """floor(1.5^k), the last group takes the rest."""
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(min(math.floor(1.5 ** len(sizes)), total - sum(sizes)))
    return sorted(sizes, reverse=True)


def punica_lengths(total: int, *, max_tokens: int, seed: int = SEED) -> list[tuple[int, int]]:
    """(prompt, output) of each request; prompts lognormal, prompt and output together uniform below ``max_tokens``."""
    random = np.random.Generator(np.random.PCG64(seed))
    return [_lengths(random, max_tokens) for _ in range(total)]


def _lengths(random: np.random.Generator, max_tokens: int) -> tuple[int, int]:
    drawn = -1.0 + 18.0 * math.exp(0.8 * random.standard_normal())
    num_prompt = int(min(max(drawn, 1), max_tokens - 2))
    num_both = max(int(random.integers(0, max_tokens)), num_prompt + 2)
    return num_prompt, num_both - num_prompt


def punica_arrivals(
    pattern: Pattern, *, num_requests: int, max_tokens: int, seed: int = SEED
) -> tuple[tuple[Arrival, ...], int]:
    """All at once, in shuffled order, and the number of adapters."""
    sizes = group_sizes(pattern, num_requests)
    adapters = np.repeat(np.arange(len(sizes)), sizes)
    np.random.Generator(np.random.PCG64(seed)).shuffle(adapters)
    lengths = punica_lengths(num_requests, max_tokens=max_tokens, seed=seed)
    arrivals = tuple(
        Arrival(
            time_ns=0,
            tenant="tenant",
            adapter=adapter_name(int(adapter)),
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
        )
        for adapter, (num_prompt, num_output) in zip(adapters, lengths, strict=True)
    )
    return arrivals, len(sizes)
