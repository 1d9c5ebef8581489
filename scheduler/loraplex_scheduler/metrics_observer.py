"""Looks at every turn of the scheduler from outside the core, and keeps the numbers that ``metrics`` declares."""

import collections
import time
from collections.abc import Sequence
from typing import Final

from loraplex_contract.metrics import Family, Labels, MetricTable
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.statistics import CoreStatistics, WorkerStatistics
from loraplex_scheduler.metrics import ENGINE, OWN_SPECS, VLLM_SPECS
from loraplex_scheduler.request_metrics import RequestMetrics
from loraplex_scheduler.worker_metrics import WorkerMetrics

MAX_LISTED_ADAPTERS: Final = 128
"""Names in one list of vllm:lora_requests_info."""


class MetricsObserver:
    """Called on the loop: after each turn, when a worker's stream ends, and for a scrape."""

    def __init__(self, *, model_name: str, term: int, max_adapters_per_step: int) -> None:
        self._vllm = MetricTable(VLLM_SPECS, constant={"model_name": model_name, "engine": ENGINE})
        self._own = MetricTable(OWN_SPECS)
        self._requests = RequestMetrics(self._vllm, self._own)
        self._workers = WorkerMetrics(self._vllm, self._own)
        self._max_adapters_per_step = max_adapters_per_step
        self._turn_s = self._own.histogram("loraplex_turn_seconds").series()
        self._turn_events = self._own.histogram("loraplex_turn_events").series()
        self._names: dict[str, set[tuple[str, str]]] = {"ready": set(), "draining": set()}
        self._num_preemptions: dict[tuple[str, int], int] = {}
        """Last seen of each registration."""
        self._own.number("loraplex_term").set(term)

    def on_turn(
        self,
        turn: Sequence[events.Event],
        batch: Sequence[commands.Command],
        *,
        now_ns: int,
        duration_ns: int,
    ) -> None:
        """The core took these events at ``now_ns`` and answered with these commands."""
        self._turn_s.observe(duration_ns / 1e9)
        self._turn_events.observe(len(turn))
        for event in turn:
            self._on_event(event)
            self._requests.on_event(event)
            self._workers.on_event(event)
        for command in batch:
            self._on_command(command)
            self._requests.on_command(command, now_ns=now_ns)
            self._workers.on_command(command)
        self._requests.end_turn()

    def on_statistics(self, statistics: CoreStatistics) -> None:
        """The core counts preemptions by registration; here they add up. Call it often: a lost worker's are lost."""
        seen = {(worker.worker_id, worker.epoch): worker.counters.num_preemptions for worker in statistics.workers}
        new = sum(count - self._num_preemptions.get(registration, 0) for registration, count in seen.items())
        self._num_preemptions = seen
        self._vllm.number("vllm:num_preemptions_total").add(new)
        self._own.number("loraplex_preemptions_total").add(new)

    def on_worker_gone(self, cause: str) -> None:
        """``cause``: LEFT, STREAM_ENDED or the reason of the error that ended the stream."""
        self._own.number("loraplex_worker_losses_total").add(1, cause)

    def collect(self, statistics: CoreStatistics, *, num_frontends: int) -> list[Family]:
        """Everything, as of now."""
        self.on_statistics(statistics)
        self._show_queue(statistics)
        self._show_workers(statistics.workers)
        self._show_adapters(statistics.workers)
        self._show_lora_requests()
        links: dict[Labels, float] = {("frontend",): num_frontends, ("worker",): len(statistics.workers)}
        self._own.number("loraplex_links").replace(links)
        return [*self._vllm.collect(), *self._own.collect()]

    # --- turns ---

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.AdapterCommitted():
                self._names["ready"].add((event.tenant, event.name))
            case events.AdapterUnregistered():
                self._names["ready"].discard((event.tenant, event.name))
                self._names["draining"].add((event.tenant, event.name))

    def _on_command(self, command: commands.Command) -> None:
        match command:
            case commands.Started():
                digests = [adapter.digest for adapter in command.adapters]
                found = "base" if not digests else "device" if self._workers.has_together(digests) else "absent"
                self._own.number("loraplex_adapter_lookups_total").add(1, found)
            case commands.AdapterGone():
                self._names["draining"].discard((command.tenant, command.name))

    # --- scrapes ---

    def _show_queue(self, statistics: CoreStatistics) -> None:
        own, vllm = self._own, self._vllm
        own.number("loraplex_queue_requests").set(statistics.num_queued_requests)
        own.number("loraplex_queue_sequences").set(statistics.num_queued_sequences)
        own.number("loraplex_running_requests").set(statistics.num_running_requests)
        own.number("loraplex_leases").set(statistics.num_leases)
        num_waiting = max(0, self._requests.num_open - statistics.num_running_requests)
        needs = self._requests.digest_sets()
        num_deferred = min(num_waiting, sum(n for digests, n in needs if not self._workers.has_together(digests)))
        vllm.number("vllm:num_requests_running").set(statistics.num_running_requests)
        vllm.number("vllm:num_requests_waiting").set(num_waiting)
        by_reason = vllm.number("vllm:num_requests_waiting_by_reason")
        by_reason.set(num_deferred, "deferred")
        by_reason.set(num_waiting - num_deferred, "capacity")

    def _show_workers(self, workers: Sequence[WorkerStatistics]) -> None:
        own, vllm = self._own, self._vllm
        own.number("loraplex_running_sequences").replace({(w.worker_id,): w.num_running_sequences for w in workers})
        own.number("loraplex_starving_sequences").replace({(w.worker_id,): w.num_starving_sequences for w in workers})
        own.number("loraplex_workers").replace(
            {(device,): count for device, count in collections.Counter(w.device for w in workers).items()}
        )
        own.number("loraplex_pages").replace(
            {(w.worker_id, kind): getattr(w.pages, kind) for w in workers for kind in ("free", "kv", "adapter")}
        )
        num_kv = sum(worker.pages.kv for worker in workers)
        num_usable = sum(worker.pages.kv + worker.pages.free for worker in workers)
        vllm.number("vllm:kv_cache_usage_perc").set(num_kv / num_usable if num_usable else 0)
        num_pages: collections.Counter[int] = collections.Counter()
        for info in self._workers.infos():
            num_pages[info.page_size] += info.num_pages
        vllm.number("vllm:cache_config_info").replace({(str(size), str(n)): 1 for size, n in num_pages.items()})

    def _show_adapters(self, workers: Sequence[WorkerStatistics]) -> None:
        self._own.number("loraplex_adapters").replace({(state,): len(names) for state, names in self._names.items()})
        tiers: dict[Labels, float] = {}
        for worker in workers:
            num_on_device = sum(adapter.is_on_device for adapter in worker.adapters)
            tiers[worker.worker_id, "device"] = num_on_device
            # One whose load failed holds no page and is nowhere.
            num_held = sum(adapter.num_pages > 0 for adapter in worker.adapters)
            tiers[worker.worker_id, "moving"] = num_held - num_on_device
        self._own.number("loraplex_adapters_on_worker").replace(tiers)

    def _show_lora_requests(self) -> None:
        running, waiting = self._requests.names_by_use(self._workers.running_digests())
        max_lora = self._max_adapters_per_step or sum(info.max_sequences for info in self._workers.infos())
        labels = (str(max_lora), _listed(running), _listed(waiting))
        self._vllm.number("vllm:lora_requests_info").replace({labels: time.time()})


def _listed(names: set[str]) -> str:
    return ",".join(sorted(names)[:MAX_LISTED_ADAPTERS])
