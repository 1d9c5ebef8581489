"""Which adapter versions one scheduler has on the device or on the way there."""

import asyncio
import collections
import dataclasses
import functools
import time
from collections.abc import Callable

from loraplex_contract.errors import FailedPrecondition, LoraplexError, ResourceExhausted
from loraplex_worker.adapter_cache import AdapterCache
from loraplex_worker.engine.command import AttachAdapter, EvictAdapter
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.load_adapter import LoadAdapter
from loraplex_worker.model.lora_weights import LoraWeights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """One load order that waits for the cache."""

    order: LoadAdapter
    start_ns: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """A version that was handed to the engine, or is in it. Stands for one lease of the cache."""

    load: _Load
    num_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TierEvents:
    """Whom the tier tells. Each load order is answered by exactly one of the three."""

    on_device: Callable[[str, int, int], None]
    """(digest, load time in ns, bytes)."""
    on_evicted: Callable[[str], None]
    on_failed: Callable[[str, LoraplexError], None]


class AdapterTier:
    """The device tier during one term with a scheduler. Lives on the loop; the cache and the engine do the work."""

    def __init__(
        self,
        cache: AdapterCache,
        attach: Callable[[AttachAdapter], None],
        events: TierEvents,
        *,
        page_bytes: int,
        default_timeout_s: float,
    ) -> None:
        self._cache = cache
        self._attach = attach
        self._events = events
        self._page_bytes = page_bytes
        self._default_timeout_s = default_timeout_s
        self._loop = asyncio.get_running_loop()
        self._loads: dict[str, _Load] = {}
        """What the cache was asked for and has not answered."""
        self._handed_over: collections.deque[_Arrival] = collections.deque()
        """Whose attachment the engine has not answered; it answers in order."""
        self._attached: dict[str, _Arrival] = {}
        """What the engine has, by its answers so far."""

    def load(self, order: LoadAdapter) -> None:
        """Start to bring a version in. While it is being read, one answer serves all orders.

        A version that the engine has already goes the same way: from the cache at once, and the engine says that it
        exists. No shortcut here can be wrong about what is in flight.
        """
        if order.digest in self._loads:
            return
        load = self._loads[order.digest] = _Load(order=order, start_ns=time.monotonic_ns())
        timeout_s = self._default_timeout_s if order.timeout_s is None else order.timeout_s
        self._cache.request(order.digest, functools.partial(self._on_any_thread, load), timeout_s=timeout_s)

    def evict(self, digest: str) -> EvictAdapter:
        """What to hand to the engine. A load that has not reached it is dropped: the eviction answers both."""
        self._loads.pop(digest, None)
        return EvictAdapter(digest=digest)

    def applied(self, command: AttachAdapter | EvictAdapter) -> None:
        """The engine carried it out."""
        digest = command.digest
        if isinstance(command, AttachAdapter):
            arrival = self._attached[digest] = self._handed_over.popleft()
            self._tell_on_device(arrival)
            return
        if self._attached.pop(digest, None) is not None:
            self._cache.release(digest)
        self._events.on_evicted(digest)

    def refused(self, command: AttachAdapter | EvictAdapter, refusal: CommandRefused) -> None:
        """The engine did not carry it out; a refused eviction leaves the version where it is."""
        if isinstance(command, EvictAdapter):
            return
        arrival = self._handed_over.popleft()
        self._cache.release(command.digest)
        if refusal.reason is RefusalReason.ADAPTER_EXISTS:
            self._tell_on_device(arrival)
        else:
            self._events.on_failed(command.digest, _as_error(refusal))

    def close(self) -> None:
        """The term is over and the engine was reset: give every lease back; what the cache still sends is returned."""
        for arrival in (*self._attached.values(), *self._handed_over):
            self._cache.release(arrival.load.order.digest)
        self._loads.clear()
        self._attached.clear()
        self._handed_over.clear()

    def _on_any_thread(self, load: _Load, digest: str, answer: LoraWeights | LoraplexError) -> None:
        self._loop.call_soon_threadsafe(self._settle, load, answer)

    def _settle(self, load: _Load, answer: LoraWeights | LoraplexError) -> None:
        digest = load.order.digest
        is_wanted = self._loads.get(digest) is load
        if is_wanted:
            del self._loads[digest]
        if isinstance(answer, LoraplexError):
            if is_wanted:
                self._events.on_failed(digest, answer)
        elif not is_wanted:
            self._cache.release(digest)
        elif answer.num_bytes > load.order.num_pages * self._page_bytes:
            self._cache.release(digest)
            self._events.on_failed(digest, _too_few_pages(load.order, answer, self._page_bytes))
        else:
            self._hand_over(load, answer)

    def _hand_over(self, load: _Load, weights: LoraWeights) -> None:
        self._handed_over.append(_Arrival(load=load, num_bytes=weights.num_bytes))
        self._attach(AttachAdapter(digest=load.order.digest, weights=weights, num_pages=load.order.num_pages))

    def _tell_on_device(self, arrival: _Arrival) -> None:
        load_time_ns = time.monotonic_ns() - arrival.load.start_ns
        self._events.on_device(arrival.load.order.digest, load_time_ns, arrival.num_bytes)


def _as_error(refusal: CommandRefused) -> LoraplexError:
    if refusal.reason is RefusalReason.OUT_OF_PAGES:
        return ResourceExhausted(refusal.message, reason=refusal.reason.value)
    return FailedPrecondition(refusal.message, reason=refusal.reason.value)


def _too_few_pages(order: LoadAdapter, weights: LoraWeights, page_bytes: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"num_pages: {order.num_pages} pages of {page_bytes} bytes are charged for an adapter of {weights.num_bytes} "
        "bytes; charge ceil(bytes / page_bytes)",
        reason="ADAPTER_PAGES_WRONG",
    )
