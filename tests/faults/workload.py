"""What the streams of a soak ask for, by seed."""

import random
from collections.abc import Sequence

from tests.faults.history import Submission

WORDS = ["river", "seven", "copper", "under", "light", "because", "tomorrow", "paper", "quiet", "north", "bread"]
TOP_K = 20
"""The random model spreads a draw almost evenly over 49,152 ids. A rounding of the logits, which another batch brings
also in fp32, then moves one draw in some 30,000 to the neighbouring id (seen 2026-11-24); over 20 ids it does not."""
NUM_LONG = 2
"""Of a catalogue: streams so long that two blows may hit them."""


def catalogue(seed: int, adapters: Sequence[str], *, num_submissions: int = 48) -> list[Submission]:
    """Distinct submissions: base model and each adapter in turn, greedy and sampled in turn, lengths drawn.

    All but ``NUM_LONG`` are short against the time between two blows.
    """
    draw = random.Random(seed)
    names = [None, *adapters]
    return [
        Submission(
            prompt=f"Number {number}: " + " ".join(draw.choices(WORDS, k=draw.randint(1, 120))),
            adapter=names[number % len(names)],
            max_tokens=draw.randint(150, 200) if number < NUM_LONG else draw.randint(4, 60),
            temperature=0.0 if number // len(names) % 2 else draw.choice((0.7, 1.0, 1.3)),
            top_k=TOP_K,
            seed=draw.getrandbits(63),
        )
        for number in range(num_submissions)
    ]
