"""Tries to break the worst wait that docs/architecture.md states."""

import random
from typing import Any

import pytest

from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.request import Sequence
from tests.scheduler.rig import Rig

STEP_S = 0.01
MAX_OVERTAKE_S = 0.5
MAX_TOKENS = 12
MAX_PROMPT = 30
MAX_STEP_TOKENS = 16
LOAD_STEPS = 3
NUM_STEPS = 250
NUM_WAITING = 14

RUN_S = (MAX_TOKENS + MAX_PROMPT / (MAX_STEP_TOKENS // 8)) * STEP_S
"""The longest that an admitted sequence runs: its prompt at the least that a step has for prompts, then its tokens."""
DRAIN_S = RUN_S + LOAD_STEPS * STEP_S
BOUND_S = MAX_OVERTAKE_S + 2 * DRAIN_S + 2 * STEP_S


class Stage(Rig):
    """Loads take a while; what comes next is chosen to be in the way."""

    def __init__(self, seed: int, num_workers: int) -> None:
        super().__init__(max_overtake_ns=int(MAX_OVERTAKE_S * 1e9), max_adapters_per_step=3, fairness_burst=0.0)
        self.random = random.Random(seed)
        self.holds_loads = True
        self.first: Sequence | None = None
        self.first_ns = 0
        self.longest_s = 0.0
        for number in range(num_workers):
            self.connect_worker(f"w{number}", num_pages=20, max_sequences=4, max_step_tokens=MAX_STEP_TOKENS)
        for number in range(8):
            self.register(f"a{number}", pages=self.random.choice([1, 2, 6, 9]))
            self.register(f"a{number}", pages=1, tenant="blue")

    def one_more(self) -> None:
        """Mostly small ones on what is there already: they overtake the large and the cold."""
        draw = self.random
        is_large = draw.random() < 0.2
        names = [f"a{draw.randrange(8)}"] if draw.random() < 0.7 else []
        fields: dict[str, Any] = {"tenant": draw.choice(["red", "red", "blue"])}
        num_prompt = MAX_PROMPT if is_large else draw.randint(1, 4)
        self.submit(*names, num_prompt=num_prompt, max_tokens=draw.randint(1, MAX_TOKENS), **fields)

    def run(self) -> None:
        for number in range(NUM_STEPS):
            while len(self.core._room) < NUM_WAITING:
                self.one_more()
            self.pass_time(STEP_S)
            self.step()
            if number % LOAD_STEPS == 0:
                for worker_id, worker in self.workers.items():
                    for digest in list(worker.loading):
                        self.end_load(digest, worker_id=worker_id)
            self.watch()

    def watch(self) -> None:
        """How long the same one has been first in the order of right, and was not let in."""
        first = min(self.core._room, key=self.right)
        if first is not self.first:
            self.first, self.first_ns = first, self.now_ns
        self.longest_s = max(self.longest_s, (self.now_ns - self.first_ns) / 1e9)
        assert self.longest_s <= BOUND_S, f"{first} has waited for {self.longest_s:.2f} s, the bound is {BOUND_S:.2f} s"

    def right(self, sequence: Sequence) -> Key:
        policy, account = self.core._policy, sequence.request.account
        assert account.parent is not None
        lane_key = policy.lane_key(policy.sequence_key(sequence), account, is_in_batch=False)
        return policy.shelf_key(policy.priority(sequence), account.parent, lane_key)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_first_in_the_order_of_right_waits_no_longer_than_stated(num_workers):
    longest_s = 0.0
    for seed in range(6):
        stage = Stage(seed, num_workers)
        stage.run()
        longest_s = max(longest_s, stage.longest_s)
    assert longest_s > STEP_S * 3, "nobody was in anybody's way"
