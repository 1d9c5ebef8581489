"""The host tier over a real store on disk, with loads that the test can hold and count."""

import collections
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from loraplex_adapters.digest import adapter_digest, payload_digest
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.module import Module
from loraplex_adapters.spec import AdapterSpec, LoraSite, site_key
from loraplex_adapters.store import AdapterStore
from loraplex_adapters.tensor import TensorBytes
from loraplex_contract.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    LoraplexError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from loraplex_worker.adapter_cache import AdapterCache
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.model_config import ModelConfig

_WAIT_S = 20.0
_CONFIG = ModelConfig.from_fields(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "max_position_embeddings": 64,
    }
)
_ADAPTER_BYTES = 2 * 4 * 16 * 4


def put_adapter(store: AdapterStore, seed: int) -> str:
    """Rank 4 on q_proj of layer 0: 512 bytes in F32."""
    site = LoraSite(layer=0, module=Module.Q_PROJ, rank=4, scale=2.0)
    random = np.random.default_rng(seed)
    tensors = {
        f"{site_key(site)}.{part}": TensorBytes("F32", shape, random.normal(size=shape).astype("<f4").tobytes())
        for part, shape in (("A", (4, 16)), ("B", (16, 4)))
    }
    payload = payload_digest(tensors)
    digest = adapter_digest(
        kind=AdapterKind.LORA, dtype="F32", num_bytes=_ADAPTER_BYTES, sites=(site,), payload=payload
    )
    spec = AdapterSpec(
        digest=digest,
        kind=AdapterKind.LORA,
        sites=(site,),
        dtype="F32",
        num_bytes=_ADAPTER_BYTES,
        max_rank=4,
        base_model_name="tiny",
    )
    store.put(spec, tensors)
    return digest


class HeldStore:
    """The store, behind a gate; counts what is read."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.reads: collections.Counter[str] = collections.Counter()

    def read_spec(self, digest: str) -> AdapterSpec:
        self.entered.set()
        assert self.gate.wait(_WAIT_S)
        return self._store.read_spec(digest)

    def read_tensors(self, digest: str) -> Mapping[str, TensorBytes]:
        self.reads[digest] += 1
        if self.failure is not None:
            raise self.failure
        return self._store.read_tensors(digest)


class Answers:
    """Gathers answers and waits for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[tuple[str, LoraWeights | LoraplexError]] = []

    def __call__(self, digest: str, answer: LoraWeights | LoraplexError) -> None:
        with self._changed:
            self.all.append((digest, answer))
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[LoraWeights | LoraplexError]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, _WAIT_S), f"{len(self.all)} of {count}"
            return [answer for _, answer in self.all]


@dataclasses.dataclass
class Bench:
    folder: Path
    disk: AdapterStore
    store: HeldStore
    caches: list[AdapterCache] = dataclasses.field(default_factory=list)
    now_s: float = 0.0

    def cache(self, *, num_adapters: float = 4, num_loaders: int = 2, max_waiters: int = 100) -> AdapterCache:
        cache = AdapterCache(
            self.store,
            config=_CONFIG,
            dtype=torch.float32,
            budget_bytes=int(num_adapters * _ADAPTER_BYTES),
            num_loaders=num_loaders,
            max_waiters=max_waiters,
            clock_s=lambda: self.now_s,
        )
        self.caches.append(cache)
        return cache

    def tensor_file(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest / "adapter.safetensors"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    disk = AdapterStore(tmp_path)
    bench = Bench(tmp_path, disk, HeldStore(disk))
    yield bench
    bench.store.gate.set()
    assert all(cache.close() for cache in bench.caches)


def ask(cache: AdapterCache, digest: str, *, timeout_s: float | None = None) -> LoraWeights | LoraplexError:
    answers = Answers()
    cache.request(digest, answers, timeout_s=timeout_s)
    return answers.wait()[0]


def load_and_release(cache: AdapterCache, digest: str) -> None:
    assert isinstance(ask(cache, digest), LoraWeights)
    cache.release(digest)


def test_a_version_is_read_from_the_store_once_and_then_from_memory(bench: Bench):
    digest, cache = put_adapter(bench.disk, 1), bench.cache()
    first = ask(cache, digest)
    assert isinstance(first, LoraWeights)
    assert first.layers[0].qkv is not None
    assert ask(cache, digest) is first
    assert bench.store.reads[digest] == 1
    statistics = cache.statistics()
    assert (statistics.num_hits, statistics.num_misses, statistics.num_loads) == (1, 1, 1)
    assert (statistics.num_bytes, statistics.num_leased_entries) == (_ADAPTER_BYTES, 1)


def test_fifty_threads_that_want_one_version_cause_one_read(bench: Bench):
    digest, cache, answers = put_adapter(bench.disk, 1), bench.cache(), Answers()
    bench.store.gate.clear()
    start = threading.Barrier(50)

    def want() -> None:
        start.wait(_WAIT_S)
        cache.request(digest, answers)

    threads = [threading.Thread(target=want) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S)
    assert cache.statistics().num_waiters == 50
    bench.store.gate.set()
    assert len({id(answer) for answer in answers.wait(50)}) == 1
    assert bench.store.reads[digest] == 1
    for _ in range(50):
        cache.release(digest)
    assert cache.statistics().num_leased_entries == 0


def test_the_budget_holds_and_the_least_recently_wanted_goes_first(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(4)]
    cache = bench.cache(num_adapters=3)
    for digest in digests[:3]:
        load_and_release(cache, digest)
    load_and_release(cache, digests[0])
    load_and_release(cache, digests[3])
    assert cache.statistics().num_bytes == 3 * _ADAPTER_BYTES
    assert cache.statistics().num_evictions == 1
    load_and_release(cache, digests[0])
    assert bench.store.reads[digests[0]] == 1
    load_and_release(cache, digests[1])
    assert bench.store.reads[digests[1]] == 2


def test_a_leased_version_is_never_evicted(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(5)]
    cache = bench.cache(num_adapters=2)
    leased = ask(cache, digests[0])
    for digest in digests[1:]:
        load_and_release(cache, digest)
    assert ask(cache, digests[0]) is leased
    assert bench.store.reads[digests[0]] == 1


def test_a_cache_full_of_leases_refuses_until_one_is_given_back(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(3)]
    cache = bench.cache(num_adapters=2)
    for digest in digests[:2]:
        ask(cache, digest)
    refused = ask(cache, digests[2])
    assert isinstance(refused, ResourceExhausted)
    assert refused.reason == "HOST_CACHE_FULL"
    assert cache.statistics().num_bytes == 2 * _ADAPTER_BYTES
    cache.release(digests[0])
    assert isinstance(ask(cache, digests[2]), LoraWeights)


def test_a_version_larger_than_the_budget_is_refused_for_good(bench: Bench):
    refused = ask(bench.cache(num_adapters=0.5), put_adapter(bench.disk, 1))
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "ADAPTER_TOO_LARGE"


def test_loads_in_flight_count_against_the_budget(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(6)]
    cache, answers = bench.cache(num_adapters=2, num_loaders=6), Answers()
    bench.store.gate.clear()
    for digest in digests:
        cache.request(digest, answers)
    bench.store.gate.set()
    outcomes = answers.wait(6)
    assert sum(isinstance(outcome, LoraWeights) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, ResourceExhausted) for outcome in outcomes) == 4
    assert cache.statistics().num_bytes == 2 * _ADAPTER_BYTES


def test_damaged_bytes_are_data_loss_for_all_who_wait_and_a_later_try_works(bench: Bench):
    digest, cache, answers = put_adapter(bench.disk, 1), bench.cache(), Answers()
    path = bench.tensor_file(digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    bench.store.gate.clear()
    for _ in range(3):
        cache.request(digest, answers)
    bench.store.gate.set()
    assert [type(answer) for answer in answers.wait(3)] == [DataLoss] * 3
    path.write_bytes(good)
    assert isinstance(ask(cache, digest), DataLoss), "the backoff was not kept"
    bench.now_s += 0.25
    assert isinstance(ask(cache, digest), LoraWeights)
    assert bench.store.reads[digest] == 2
    assert cache.statistics().num_bytes == _ADAPTER_BYTES


def test_the_backoff_doubles_up_to_its_bound_and_ends_with_a_success(bench: Bench):
    digest, cache = "0" * 64, bench.cache()
    expected_s = 0.25
    for _ in range(10):
        assert isinstance(ask(cache, digest), NotFound)
        num_failures = cache.statistics().num_failures
        bench.now_s += expected_s * 0.99
        assert isinstance(ask(cache, digest), NotFound)
        assert cache.statistics().num_failures == num_failures
        bench.now_s += expected_s * 0.02
        expected_s = min(30.0, expected_s * 2)


def test_an_unreadable_store_is_unavailable_and_a_bug_is_internal(bench: Bench):
    digest, cache = put_adapter(bench.disk, 1), bench.cache()
    for failure, kind in ((OSError("disk gone"), Unavailable), (ZeroDivisionError(), Internal)):
        bench.store.failure = failure
        answer = ask(cache, digest)
        assert isinstance(answer, kind)
        assert "disk gone" not in answer.message
        bench.now_s += 60.0
    bench.store.failure = None
    assert isinstance(ask(cache, digest), LoraWeights)


def test_a_waiter_is_told_at_its_deadline_and_the_load_serves_the_others(bench: Bench):
    digest, cache, patient = put_adapter(bench.disk, 1), bench.cache(), Answers()
    bench.store.gate.clear()
    cache.request(digest, patient)
    assert isinstance(ask(cache, digest, timeout_s=0.02), DeadlineExceeded)
    assert isinstance(ask(cache, digest, timeout_s=0.01), DeadlineExceeded)
    assert patient.all == []
    assert cache.statistics().num_waiters == 1
    bench.store.gate.set()
    assert isinstance(patient.wait()[0], LoraWeights)
    assert cache.statistics().num_leased_entries == 1


def test_a_load_that_nobody_waits_for_any_more_leaves_the_queue(bench: Bench):
    first, second = put_adapter(bench.disk, 1), put_adapter(bench.disk, 2)
    cache, answers = bench.cache(num_loaders=1), Answers()
    bench.store.gate.clear()
    cache.request(first, answers)
    assert bench.store.entered.wait(_WAIT_S)
    assert isinstance(ask(cache, second, timeout_s=0.02), DeadlineExceeded)
    assert cache.statistics().num_queued == 0
    bench.store.gate.set()
    answers.wait()
    assert bench.store.reads[second] == 0
    assert isinstance(ask(cache, second), LoraWeights)


def test_waiters_are_bounded(bench: Bench):
    digest, cache, answers = put_adapter(bench.disk, 1), bench.cache(max_waiters=3), Answers()
    bench.store.gate.clear()
    for _ in range(3):
        cache.request(digest, answers)
    refused = ask(cache, digest)
    assert isinstance(refused, ResourceExhausted)
    assert refused.reason == "LOAD_QUEUE_FULL"
    bench.store.gate.set()
    assert all(isinstance(answer, LoraWeights) for answer in answers.wait(3))


def test_a_receiver_that_raises_does_not_end_the_loader(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(2)]
    cache = bench.cache(num_loaders=1)

    def fail(digest: str, answer: LoraWeights | LoraplexError) -> None:
        raise ValueError(digest)

    cache.request(digests[0], fail)
    assert isinstance(ask(cache, digests[1]), LoraWeights)


def test_close_fails_those_who_wait_and_ends_every_thread(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(3)]
    cache, answers = bench.cache(num_loaders=1), Answers()
    bench.store.gate.clear()
    for digest in digests:
        cache.request(digest, answers)
    assert bench.store.entered.wait(_WAIT_S)
    assert not cache.close(timeout_s=0.01)
    assert [type(answer) for answer in answers.wait(3)] == [Unavailable] * 3
    assert isinstance(ask(cache, digests[0]), Unavailable)
    bench.store.gate.set()
    assert cache.close()


def test_many_threads_asking_and_releasing_keep_the_budget(bench: Bench):
    digests = [put_adapter(bench.disk, seed) for seed in range(8)]
    cache = bench.cache(num_adapters=3, num_loaders=3)
    kinds: collections.Counter[type] = collections.Counter()
    over_budget: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for index in random.integers(0, len(digests), size=40).tolist():
            answer = ask(cache, digests[index])
            kinds[type(answer)] += 1
            if cache.statistics().num_bytes > 3 * _ADAPTER_BYTES:
                over_budget.append(index)
            if isinstance(answer, LoraWeights):
                cache.release(digests[index])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S)
    assert over_budget == []
    assert set(kinds) <= {LoraWeights, ResourceExhausted}
    assert kinds[LoraWeights] > 0
    statistics = cache.statistics()
    assert (statistics.num_leased_entries, statistics.num_waiters, statistics.num_loading) == (0, 0, 0)
    assert statistics.num_bytes == statistics.num_entries * _ADAPTER_BYTES
