"""The device tier against a cache and an engine that answer when the test says, in every order."""

import asyncio
import collections
import types
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_contract.errors import LoraplexError, NotFound
from loraplex_worker.adapter_cache import OnReady
from loraplex_worker.adapter_tier import AdapterTier, TierEvents
from loraplex_worker.engine.command import AttachAdapter, EvictAdapter
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.load_adapter import LoadAdapter
from loraplex_worker.model.lora_weights import LoraWeights

WEIGHTS = LoraWeights(layers=(), embed_tokens=None, lm_head=None, num_bytes=10)
DIGESTS = ("a", "b")


class ScriptedCache:
    """Answers the oldest request when told; counts leases. What is leased is in memory, so its answer is never bad."""

    def __init__(self):
        self.waiting: collections.deque[tuple[str, OnReady]] = collections.deque()
        self.leases: collections.Counter[str] = collections.Counter()

    def request(self, digest, on_ready, *, timeout_s):
        self.waiting.append((digest, on_ready))

    def answer(self, *, well):
        digest, on_ready = self.waiting.popleft()
        well = well or self.leases[digest] > 0
        self.leases[digest] += well
        on_ready(digest, WEIGHTS if well else NotFound("absent"))

    def release(self, digest):
        self.leases[digest] -= 1
        assert self.leases[digest] >= 0, f"{digest} released twice"


class Bench:
    """A tier between both, and what the scheduler was told of each version."""

    def __init__(self):
        self.cache = ScriptedCache()
        self.inbox: collections.deque[AttachAdapter | EvictAdapter] = collections.deque()
        self.attached: set[str] = set()
        self.in_use: set[str] = set()
        self.told: dict[str, list[str]] = collections.defaultdict(list)
        events = TierEvents(
            on_device=lambda digest, load_time_ns, num_bytes: self.told[digest].append("DEVICE"),
            on_evicted=lambda digest: self.told[digest].append("EVICTED"),
            on_failed=lambda digest, error: self.told[digest].append("FAILED"),
        )
        cache: Any = self.cache
        self.tier = AdapterTier(cache, self.inbox.append, events, page_bytes=5, default_timeout_s=1.0)

    def load(self, digest):
        self.tier.load(LoadAdapter(digest=digest, num_pages=2, timeout_s=None))

    def evict(self, digest):
        self.inbox.append(self.tier.evict(digest))

    def answer(self, *, well):
        if self.cache.waiting:
            self.cache.answer(well=well)

    def turn(self):
        """The engine takes one command."""
        if not self.inbox:
            return
        command = self.inbox.popleft()
        if isinstance(command, AttachAdapter) and command.digest in self.attached:
            self.tier.refused(command, CommandRefused(RefusalReason.ADAPTER_EXISTS, "", digest=command.digest))
        elif isinstance(command, EvictAdapter) and command.digest in self.attached & self.in_use:
            self.tier.refused(command, CommandRefused(RefusalReason.ADAPTER_IN_USE, "", digest=command.digest))
            self.told[command.digest].append("REFUSED")
        else:
            (self.attached.add if isinstance(command, AttachAdapter) else self.attached.discard)(command.digest)
            self.tier.applied(command)

    def use(self, digest):
        self.in_use.symmetric_difference_update({digest} & self.attached)

    async def settle(self):
        """Everything in flight is answered."""
        for _ in range(200):
            if not (self.cache.waiting or self.inbox):
                return
            self.answer(well=True)
            await asyncio.sleep(0)
            self.turn()
        raise AssertionError("still something in flight")


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("load", "evict", "use")), st.sampled_from(DIGESTS)),
        st.tuples(st.just("answer"), st.booleans()),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=30,
)


async def play(bench, operations):
    for name, value in operations:
        match name:
            case "answer":
                bench.answer(well=value)
            case "turn":
                bench.turn()
            case _:
                getattr(bench, name)(value)
        await asyncio.sleep(0)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_the_last_word_about_a_version_is_true_and_what_the_engine_has_is_leased_once(operations):
    async def run():
        bench = Bench()
        await play(bench, operations)
        await bench.settle()
        for digest in DIGESTS:
            assert bench.cache.leases[digest] == (digest in bench.attached)
            last = bench.told[digest][-1] if bench.told[digest] else "EVICTED"
            assert (last in ("DEVICE", "REFUSED")) == (digest in bench.attached)

    asyncio.run(run())


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_a_closed_tier_holds_no_lease_whatever_was_in_flight(operations):
    async def run():
        bench = Bench()
        await play(bench, operations)
        bench.tier.close()
        told = {digest: list(words) for digest, words in bench.told.items()}
        while bench.cache.waiting:
            bench.answer(well=True)
            await asyncio.sleep(0)
        assert not +bench.cache.leases
        assert {digest: list(words) for digest, words in bench.told.items()} == told

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.booleans())
def test_orders_that_wait_for_one_read_share_one_answer(num_orders, well):
    async def run():
        bench = Bench()
        for _ in range(num_orders):
            bench.load("a")
        assert len(bench.cache.waiting) == 1
        bench.answer(well=well)
        await asyncio.sleep(0)
        bench.turn()
        assert bench.told["a"] == ["DEVICE" if well else "FAILED"]

    asyncio.run(run())


def test_the_error_of_the_cache_is_handed_on_as_it_is():
    error: list[LoraplexError] = []

    async def run():
        cache: Any = ScriptedCache()
        nothing = types.SimpleNamespace(on_device=None, on_evicted=None, on_failed=lambda digest, e: error.append(e))
        events: Any = nothing
        tier = AdapterTier(cache, lambda command: None, events, page_bytes=5, default_timeout_s=1.0)
        tier.load(LoadAdapter(digest="a", num_pages=2, timeout_s=None))
        cache.answer(well=False)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert [type(entry) for entry in error] == [NotFound]
