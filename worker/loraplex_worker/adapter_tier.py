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


@dataclasses.dataclass(slots=True)
class _Version:
    """One version from its load order until it is off the device."""

    order: LoadAdapter
    start_ns: int
    weights: LoraWeights | None = None
    """None until the cache has answered. From then on this object holds one lease of the cache."""
    is_attached: bool = False


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
        self._versions: dict[str, _Version] = {}
        """Ordered and not evicted since."""
        self._in_flight: collections.deque[_Version | None] = collections.deque()
        """Whose attachment or eviction the engine has not answered; it answers in order. None: not ordered here."""
        self._is_closed = False

    def load(self, order: LoadAdapter) -> None:
        """Start to bring a version in. Idempotent: while it is on the way, one answer serves all orders."""
        known = self._versions.get(order.digest)
        if known is not None:
            if known.is_attached:
                self._tell_on_device(known)
            return
        version = _Version(order=order, start_ns=time.monotonic_ns())
        self._versions[order.digest] = version
        timeout_s = self._default_timeout_s if order.timeout_s is None else order.timeout_s
        self._cache.request(order.digest, functools.partial(self._on_loader_thread, version), timeout_s=timeout_s)

    def evict(self, digest: str) -> EvictAdapter | None:
        """What to hand to the engine; None if the version has not reached it, and was dropped here."""
        version = self._versions.pop(digest, None)
        if version is not None and version.weights is None:
            self._events.on_evicted(digest)
            return None
        self._in_flight.append(version)
        return EvictAdapter(digest=digest)

    def applied(self, command: AttachAdapter | EvictAdapter) -> None:
        """The engine carried out the oldest command in flight, which is this one."""
        version = self._in_flight.popleft()
        if isinstance(command, EvictAdapter):
            self._release(version)
            self._events.on_evicted(command.digest)
            return
        assert version is not None
        version.is_attached = True
        self._tell_on_device(version)

    def refused(self, command: AttachAdapter | EvictAdapter, refusal: CommandRefused) -> None:
        """The engine refused the oldest command in flight, which is this one."""
        version = self._in_flight.popleft()
        if isinstance(command, EvictAdapter):
            self._keep(version)
            return
        assert version is not None
        if refusal.reason is RefusalReason.ADAPTER_EXISTS:
            version.is_attached = True
            self._tell_on_device(version)
        else:
            self._give_up(version, _as_error(refusal))

    def close(self) -> None:
        """The term is over and the engine was reset: give every lease back; what the cache still sends is returned."""
        self._is_closed = True
        for version in (*self._versions.values(), *self._in_flight):
            self._release(version)
        self._versions.clear()
        self._in_flight.clear()

    def _on_loader_thread(self, version: _Version, digest: str, answer: LoraWeights | LoraplexError) -> None:
        self._loop.call_soon_threadsafe(self._settle, version, answer)

    def _settle(self, version: _Version, answer: LoraWeights | LoraplexError) -> None:
        if isinstance(answer, LoraWeights):
            version.weights = answer
        if self._is_closed or self._versions.get(version.order.digest) is not version:
            self._release(version)
        elif isinstance(answer, LoraWeights):
            self._hand_over(version, answer)
        else:
            self._give_up(version, answer)

    def _hand_over(self, version: _Version, weights: LoraWeights) -> None:
        order = version.order
        if weights.num_bytes > order.num_pages * self._page_bytes:
            self._give_up(version, _too_few_pages(order, weights, self._page_bytes))
            return
        self._in_flight.append(version)
        self._attach(AttachAdapter(digest=order.digest, weights=weights, num_pages=order.num_pages))

    def _give_up(self, version: _Version, error: LoraplexError) -> None:
        digest = version.order.digest
        self._release(version)
        if self._versions.get(digest) is version:
            del self._versions[digest]
        self._events.on_failed(digest, error)

    def _keep(self, version: _Version | None) -> None:
        """An eviction was refused. If the version was ordered again meanwhile, that order's lease takes its place."""
        if version is not None and self._versions.setdefault(version.order.digest, version) is not version:
            self._release(version)

    def _release(self, version: _Version | None) -> None:
        if version is not None and version.weights is not None:
            version.weights = None
            self._cache.release(version.order.digest)

    def _tell_on_device(self, version: _Version) -> None:
        assert version.weights is not None
        load_time_ns = time.monotonic_ns() - version.start_ns
        self._events.on_device(version.order.digest, load_time_ns, version.weights.num_bytes)


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
