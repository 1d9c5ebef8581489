"""Keeps the numbers that ``metrics`` declares. Lives on the loop: the step thread is never asked to count."""

import dataclasses
from typing import Final

from loraplex_contract.metrics import Family, Labels, MetricTable
from loraplex_worker.adapter_cache import CacheStatistics
from loraplex_worker.engine.command import AttachAdapter, Command, EvictAdapter, Reset
from loraplex_worker.engine.refusal import CommandRefused
from loraplex_worker.engine.report import Finish, StepReport
from loraplex_worker.link_state import LinkState
from loraplex_worker.metrics import SPECS
from loraplex_worker.step_thread import LoopTimes, StepProgress


class MetricsObserver:
    """Told by the engine's port and by the link; asked by the endpoint."""

    def __init__(self) -> None:
        self._table: Final = MetricTable(SPECS)
        self._attached: set[str] = set()
        self._batch_rows = {kind: self._table.histogram("loraplex_batch_rows").series(kind) for kind in _ROW_KINDS}
        self._batch_adapters = self._table.histogram("loraplex_batch_adapters").series()

    # --- the engine's port ---

    def on_report(self, report: StepReport) -> None:
        number, num_adapters = self._table.number, len(report.adapter_digests)
        self._table.histogram("loraplex_step_seconds").observe(report.duration_ns / 1e9, _phase(report))
        number("loraplex_steps_total").add(1, _rows(num_adapters, has_base_rows=report.has_base_rows))
        self._batch_adapters.observe(num_adapters)
        for kind, num_rows in zip(_ROW_KINDS, (report.num_decode_rows, report.num_prefill_rows), strict=True):
            if num_rows:
                self._batch_rows[kind].observe(num_rows)
                number("loraplex_rows_total").add(num_rows, kind)
        number("loraplex_engine_tokens_total").add(sum(len(emission.token_ids) for emission in report.emissions))
        number("loraplex_nonfinite_rows_total").add(sum(e.finish is Finish.NUMERICAL for e in report.emissions))
        number("loraplex_prefix_cache_tokens_total").add(sum(hit.num_tokens for hit in report.prefix_hits))
        for kind in ("free", "kv", "adapter"):
            number("loraplex_engine_pages").set(getattr(report.pages, kind), kind)

    def on_refused(self, refusal: CommandRefused) -> None:
        self._table.number("loraplex_commands_refused_total").add(1, refusal.reason.value)

    def on_applied(self, command: Command) -> None:
        match command:
            case AttachAdapter():
                self._attached.add(command.digest)
            case EvictAdapter() if command.digest in self._attached:
                self._attached.remove(command.digest)
                self._table.number("loraplex_adapter_evictions_total").add(1, "device")
            case Reset():
                self._attached.clear()

    # --- the link ---

    def on_loaded(self, load_time_ns: int) -> None:
        self._table.histogram("loraplex_adapter_load_seconds").observe(load_time_ns / 1e9)

    def on_load_failed(self, reason: str) -> None:
        self._table.number("loraplex_adapter_load_errors_total").add(1, reason)

    # --- scrapes ---

    def collect(
        self, progress: StepProgress, times: LoopTimes, cache: CacheStatistics, link: LinkState
    ) -> list[Family]:
        """Everything, as of now."""
        self._show_engine(progress, times)
        self._show_adapters(cache)
        self._show_link(link)
        return self._table.collect()

    def _show_engine(self, progress: StepProgress, times: LoopTimes) -> None:
        self._table.number("loraplex_engine_sequences").set(progress.num_sequences)
        self._table.number("loraplex_engine_pending_commands").set(progress.num_pending)
        for part in dataclasses.fields(times):
            name = part.name.removesuffix("_ns")
            self._table.number("loraplex_step_thread_seconds_total").follow(getattr(times, part.name) / 1e9, name)

    def _show_adapters(self, cache: CacheStatistics) -> None:
        number = self._table.number
        tiers: dict[Labels, float] = {
            ("device",): len(self._attached),
            ("host",): cache.num_entries,
            ("loading",): cache.num_loading,
            ("queued",): cache.num_queued,
        }
        number("loraplex_worker_adapters").replace(tiers)
        number("loraplex_host_cache_bytes").replace({("used",): cache.num_bytes, ("budget",): cache.budget_bytes})
        number("loraplex_adapter_hit_total").follow(cache.num_hits, "host")
        number("loraplex_adapter_hit_total").follow(cache.num_misses, "store")
        number("loraplex_adapter_loads_total").follow(cache.num_loads, "ok")
        number("loraplex_adapter_loads_total").follow(cache.num_failures, "failed")
        number("loraplex_adapter_evictions_total").follow(cache.num_evictions, "host")

    def _show_link(self, link: LinkState) -> None:
        self._table.number("loraplex_link_up").set(link.is_up)
        self._table.number("loraplex_link_losses_total").follow(link.num_losses)
        self._table.number("loraplex_link_waiting_frames").set(link.num_waiting_frames)
        self._table.number("loraplex_lease_left_seconds").set(link.lease_left_s)


_ROW_KINDS: Final = ("decode", "prefill")


def _phase(report: StepReport) -> str:
    if not report.num_prefill_rows:
        return "decode"
    return "mixed" if report.num_decode_rows else "prefill"


def _rows(num_adapters: int, *, has_base_rows: bool) -> str:
    if not num_adapters:
        return "base"
    return "mixed" if has_base_rows or num_adapters > 1 else "lora"
