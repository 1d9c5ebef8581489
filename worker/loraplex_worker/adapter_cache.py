"""The host tier: adapter versions read from the store into memory by loader threads, off the step loop."""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch

from loraplex_adapters.spec import AdapterSpec
from loraplex_adapters.tensor import ITEM_BYTES, TensorBytes
from loraplex_contract.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    LoraplexError,
    ResourceExhausted,
    Unavailable,
)
from loraplex_kernels.cpu_native.library import Mode
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.model_config import ModelConfig

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0
_MAX_FAILURES_KEPT = 4096

OnReady: TypeAlias = Callable[[str, LoraWeights | LoraplexError], None]


class AdapterReader(Protocol):
    """What the cache needs of ``loraplex_adapters.store.AdapterStore``."""

    def read_spec(self, digest: str) -> AdapterSpec: ...

    def read_tensors(self, digest: str) -> Mapping[str, TensorBytes]: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """A snapshot for metrics and tests."""

    budget_bytes: int
    num_bytes: int
    """Held, with what is reserved for loads in flight: never above the budget."""
    num_entries: int
    num_leased_entries: int
    num_queued: int
    num_loading: int
    num_waiters: int
    num_hits: int
    num_misses: int
    num_loads: int
    """Loads that succeeded."""
    num_failures: int
    num_evictions: int


@dataclasses.dataclass(slots=True)
class _Waiter:
    on_ready: OnReady
    deadline_s: float | None


@dataclasses.dataclass(slots=True)
class _Load:
    """A version that is queued or being read, and who waits for it."""

    waiters: list[_Waiter] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class _Entry:
    weights: LoraWeights
    num_leases: int = 0


@dataclasses.dataclass(slots=True)
class _Failure:
    """Until ``retry_s`` the store is not asked again."""

    error: LoraplexError
    backoff_s: float
    retry_s: float


_Delivery: TypeAlias = tuple[OnReady, str, LoraWeights | LoraplexError]


class AdapterCache:
    """Versions in host memory within a byte budget, least recently asked for first out.

    Each success hands its caller one lease: the entry stays until the caller gives it back with ``release``, after the
    device tier evicted the version or did not take it. On CPU the device tier uses the same tensors, so the lease also
    keeps the cache from counting them as free. While a version is read, its raw bytes exist beside the weights; the
    budget does not count those of at most ``num_loaders`` versions.
    """

    def __init__(
        self,
        store: AdapterReader,
        *,
        config: ModelConfig,
        dtype: torch.dtype,
        budget_bytes: int,
        num_loaders: int = 2,
        max_waiters: int = 4096,
        cpu_kernels: Mode = "auto",
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the loader threads.

        Args:
            store: where versions come from.
            config: the base model that the weights must fit.
            dtype: compute dtype of the weights.
            budget_bytes: bound of the weights in memory.
            num_loaders: threads, each reading one version at a time.
            max_waiters: bound of requests that wait for a load.
            cpu_kernels: what the decoder was made with.
            clock_s: monotonic seconds, for backoff.
        """
        self._store = store
        self._config = config
        self._dtype = dtype
        self._cpu_kernels: Mode = cpu_kernels
        self._budget_bytes = budget_bytes
        self._max_waiters = max_waiters
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._load_added = threading.Condition(self._lock)
        self._deadline_added = threading.Condition(self._lock)
        self._entries: collections.OrderedDict[str, _Entry] = collections.OrderedDict()
        self._loads: dict[str, _Load] = {}
        self._queue: collections.deque[str] = collections.deque()
        self._failures: collections.OrderedDict[str, _Failure] = collections.OrderedDict()
        self._counts: collections.Counter[str] = collections.Counter()
        self._num_bytes = 0
        self._num_waiters = 0
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run_loader, name=f"adapter-loader-{index}") for index in range(num_loaders)
        ]
        self._threads.append(threading.Thread(target=self._run_deadlines, name="adapter-deadlines"))
        for thread in self._threads:
            thread.start()

    def request(self, digest: str, on_ready: OnReady, *, timeout_s: float | None = None) -> None:
        """Ask for one version. ``on_ready`` is called exactly once: at once, on this thread, if the answer is known.

        Args:
            digest: the version.
            on_ready: gets the digest and the weights, with a lease, or an error: NotFound or DataLoss from the store,
                FailedPrecondition (does not fit the base model or the budget), ResourceExhausted (queue full, or all
                of the budget leased), DeadlineExceeded, Unavailable (store not readable, closing). It must not block.
            timeout_s: when to give up waiting; the load itself goes on for others.
        """
        with self._lock:
            answer = self._answer(digest)
            if answer is None:
                self._wait_for_load(
                    digest, _Waiter(on_ready, None if timeout_s is None else time.monotonic() + timeout_s)
                )
        if answer is not None:
            _deliver([(on_ready, digest, answer)])

    def release(self, digest: str) -> None:
        """Give back one lease. The weights stay cached until their room is needed."""
        with self._lock:
            entry = self._entries[digest]
            assert entry.num_leases > 0, digest
            entry.num_leases -= 1

    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(
                budget_bytes=self._budget_bytes,
                num_bytes=self._num_bytes,
                num_entries=len(self._entries),
                num_leased_entries=sum(entry.num_leases > 0 for entry in self._entries.values()),
                num_queued=len(self._queue),
                num_loading=len(self._loads) - len(self._queue),
                num_waiters=self._num_waiters,
                num_hits=self._counts["hits"],
                num_misses=self._counts["misses"],
                num_loads=self._counts["loads"],
                num_failures=self._counts["failures"],
                num_evictions=self._counts["evictions"],
            )

    def close(self, timeout_s: float = 30.0) -> bool:
        """Refuse new requests, fail those that wait, end the threads. Returns whether all ended in time."""
        error = Unavailable("the worker is stopping", reason="WORKER_STOPPING")
        with self._lock:
            self._is_closing = True
            self._queue.clear()
            deliveries = [delivery for digest in self._loads for delivery in self._answer_waiters(digest, error)]
            self._load_added.notify_all()
            self._deadline_added.notify_all()
        _deliver(deliveries)
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _answer(self, digest: str) -> LoraWeights | LoraplexError | None:
        """What is known without a load."""
        if self._is_closing:
            return Unavailable("the worker is stopping", reason="WORKER_STOPPING")
        entry = self._entries.get(digest)
        if entry is not None:
            self._counts["hits"] += 1
            self._entries.move_to_end(digest)
            entry.num_leases += 1
            return entry.weights
        self._counts["misses"] += 1
        failure = self._failures.get(digest)
        if failure is not None and digest not in self._loads and self._clock_s() < failure.retry_s:
            return failure.error
        if self._num_waiters >= self._max_waiters:
            return ResourceExhausted(
                f"{self._num_waiters} requests wait for adapter loads, the most allowed",
                reason="LOAD_QUEUE_FULL",
                retry_delay_s=1.0,
            )
        return None

    def _wait_for_load(self, digest: str, waiter: _Waiter) -> None:
        load = self._loads.get(digest)
        if load is None:
            load = self._loads[digest] = _Load()
            self._queue.append(digest)
            self._load_added.notify()
        load.waiters.append(waiter)
        self._num_waiters += 1
        if waiter.deadline_s is not None:
            self._deadline_added.notify()

    def _answer_waiters(self, digest: str, answer: LoraWeights | LoraplexError) -> list[_Delivery]:
        """Take all waiters off a load; the caller delivers outside the lock."""
        waiters, self._loads[digest].waiters = self._loads[digest].waiters, []
        self._num_waiters -= len(waiters)
        return [(waiter.on_ready, digest, answer) for waiter in waiters]

    def _run_loader(self) -> None:
        while (digest := self._next_load()) is not None:
            answer = self._load(digest)
            with self._lock:
                deliveries = self._settle(digest, answer)
            _deliver(deliveries)

    def _next_load(self) -> str | None:
        with self._lock:
            while not self._queue and not self._is_closing:
                self._load_added.wait()
            return None if self._is_closing else self._queue.popleft()

    def _load(self, digest: str) -> LoraWeights | LoraplexError:
        reserved_bytes = 0
        try:
            spec = self._store.read_spec(digest)
            reserved_bytes = self._reserve(spec.num_bytes // ITEM_BYTES[spec.dtype] * self._dtype.itemsize)
            tensors = self._store.read_tensors(digest)
            weights = LoraWeights.from_tensors(
                spec, tensors, dtype=self._dtype, config=self._config, cpu_kernels=self._cpu_kernels
            )
            self._resize(weights.num_bytes - reserved_bytes)
        except Exception as error:
            self._resize(-reserved_bytes)
            return _as_loraplex_error(error)
        return weights

    def _reserve(self, num_bytes: int) -> int:
        """Make room by dropping entries without leases, oldest first.

        Raises:
            FailedPrecondition: more than the whole budget.
            ResourceExhausted: the rest of the budget is leased or being loaded.
        """
        if num_bytes > self._budget_bytes:
            raise FailedPrecondition(
                f"the adapter takes {num_bytes} bytes, the worker's adapter memory is {self._budget_bytes}",
                reason="ADAPTER_TOO_LARGE",
            )
        with self._lock:
            room = self._budget_bytes - self._num_bytes
            idle = [digest for digest, entry in self._entries.items() if not entry.num_leases]
            victims: list[str] = []
            while room < num_bytes and len(victims) < len(idle):
                victims.append(idle[len(victims)])
                room += self._entries[victims[-1]].weights.num_bytes
            if room < num_bytes:
                raise ResourceExhausted(
                    f"{num_bytes} bytes wanted for an adapter; {room} are not in use",
                    reason="HOST_CACHE_FULL",
                    retry_delay_s=1.0,
                )
            for digest in victims:
                self._num_bytes -= self._entries.pop(digest).weights.num_bytes
            self._counts["evictions"] += len(victims)
            self._num_bytes += num_bytes
        return num_bytes

    def _resize(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes

    def _settle(self, digest: str, answer: LoraWeights | LoraplexError) -> list[_Delivery]:
        deliveries = self._answer_waiters(digest, answer)
        del self._loads[digest]
        if isinstance(answer, LoraWeights):
            self._counts["loads"] += 1
            self._failures.pop(digest, None)
            self._entries[digest] = _Entry(answer, num_leases=len(deliveries))
        else:
            self._counts["failures"] += 1
            self._note_failure(digest, answer)
        return deliveries

    def _note_failure(self, digest: str, error: LoraplexError) -> None:
        if isinstance(error, ResourceExhausted):
            # Not the version's fault: whether it fits changes with every release.
            return
        last = self._failures.pop(digest, None)
        backoff_s = min(_MAX_BACKOFF_S, last.backoff_s * 2 if last else _FIRST_BACKOFF_S)
        self._failures[digest] = _Failure(error, backoff_s, self._clock_s() + backoff_s)
        if len(self._failures) > _MAX_FAILURES_KEPT:
            self._failures.popitem(last=False)

    def _run_deadlines(self) -> None:
        while True:
            with self._lock:
                if self._is_closing:
                    return
                deliveries, next_s = self._expire(time.monotonic())
                if not deliveries:
                    self._deadline_added.wait(None if next_s is None else max(0.0, next_s - time.monotonic()))
            _deliver(deliveries)

    def _expire(self, now_s: float) -> tuple[list[_Delivery], float | None]:
        """Waiters whose time is over, and the next deadline."""
        deliveries: list[_Delivery] = []
        next_s: float | None = None
        for digest, load in self._loads.items():
            kept = []
            for waiter in load.waiters:
                if waiter.deadline_s is not None and waiter.deadline_s <= now_s:
                    error = DeadlineExceeded(f"adapter version {digest[:12]} was not loaded in time", reason="DEADLINE")
                    deliveries.append((waiter.on_ready, digest, error))
                    continue
                kept.append(waiter)
                if waiter.deadline_s is not None:
                    next_s = waiter.deadline_s if next_s is None else min(next_s, waiter.deadline_s)
            load.waiters = kept
        self._num_waiters -= len(deliveries)
        if deliveries:
            self._forget_unwanted()
        return deliveries, next_s

    def _forget_unwanted(self) -> None:
        """Drop queued loads that nobody waits for, so that a store that hangs does not let the queue grow."""
        wanted = [digest for digest in self._queue if self._loads[digest].waiters]
        for digest in set(self._queue).difference(wanted):
            del self._loads[digest]
        self._queue = collections.deque(wanted)


def _deliver(deliveries: list[_Delivery]) -> None:
    for on_ready, digest, answer in deliveries:
        try:
            on_ready(digest, answer)
        except Exception:
            _LOG.exception("the receiver of adapter version %s failed", digest[:12])


def _as_loraplex_error(error: Exception) -> LoraplexError:
    if isinstance(error, LoraplexError):
        return error
    _LOG.error("an adapter load failed", exc_info=error)
    if isinstance(error, OSError):
        return Unavailable("the adapter store cannot be read", reason="STORE_UNAVAILABLE", retry_delay_s=1.0)
    return Internal("an adapter could not be loaded")
