"""Workload P1: 32 requests of 128 prompt tokens and 32 output tokens, over D adapters round-robin. Deterministic."""

import dataclasses
import random

NUM_REQUESTS = 32
NUM_PROMPT_TOKENS = 128
NUM_OUTPUT_TOKENS = 32
RANK = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    prompt_ids: tuple[int, ...]
    adapter: int | None
    """Number of the adapter; None = base model."""


def p1(
    num_adapters: int, *, vocab_size: int, seed: int = 42, num_prompt_tokens: int = NUM_PROMPT_TOKENS
) -> list[Request]:
    """The same prompts whatever the number of adapters."""
    generator = random.Random(seed)
    requests = []
    for number in range(NUM_REQUESTS):
        ids = tuple(generator.randrange(100, vocab_size) for _ in range(num_prompt_tokens))
        requests.append(Request(prompt_ids=ids, adapter=number % num_adapters if num_adapters else None))
    return requests
