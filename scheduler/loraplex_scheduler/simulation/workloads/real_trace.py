"""In the shape of S-LoRA's real trace, whose log is not public: lengths and popularity are drawn to its figures.

Their log: Chatbot Arena, some 26 models that stand for adapters, prompts of 85 and replies of 165 tokens on the mean,
both below 512, arrival times rescaled to the duration. Ours: lengths lognormal with these means after the cut at 512,
popularity Zipf with exponent 1, arrivals uniform over the duration.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from loraplex_scheduler.simulation.workload import SECOND_NS, Arrival
from loraplex_scheduler.simulation.workloads.slora_synthetic import adapter_name

NUM_ADAPTERS: Final = 26
MAX_TOKENS: Final = 512
_PROMPT: Final = (4.025, 1.05)
"""Mean and deviation of the logarithm, found by trial: mean 85 below the cut."""
_REPLY: Final = (4.975, 0.85)
"""As above: mean 165."""


def real_trace_arrivals(*, rate: float, duration_s: float, seed: int) -> tuple[Arrival, ...]:
    """Args:
    rate: requests per second.
    """
    random = np.random.default_rng(seed)
    total = int(rate * duration_s)
    popularity = 1 / np.arange(1, NUM_ADAPTERS + 1)
    indices = random.choice(NUM_ADAPTERS, total, p=popularity / popularity.sum())
    prompts, replies = _lengths(random, total, _PROMPT), _lengths(random, total, _REPLY)
    times = np.sort(random.uniform(0, duration_s, total))
    return tuple(
        Arrival(
            time_ns=math.floor(time * SECOND_NS),
            tenant="tenant",
            adapter=adapter_name(int(index)),
            num_prompt_tokens=int(num_prompt),
            num_output_tokens=int(num_reply),
        )
        for time, index, num_prompt, num_reply in zip(times, indices, prompts, replies, strict=True)
    )


def _lengths(random: np.random.Generator, total: int, shape: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Lengths of 512 and more are dropped and drawn again, as the log's conversations are."""
    kept = np.empty(0, dtype=np.int64)
    while len(kept) < total:
        drawn = np.ceil(random.lognormal(*shape, 2 * total)).astype(np.int64)
        kept = np.concatenate([kept, drawn[drawn < MAX_TOKENS]])
    return kept[:total]
