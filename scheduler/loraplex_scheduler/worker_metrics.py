"""Follows the workers through the turns of the core: what runs on them, and which adapters they have."""

import dataclasses
from collections.abc import Iterable

from loraplex_contract.metrics import MetricTable
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events


@dataclasses.dataclass(slots=True, kw_only=True)
class _Registration:
    info: events.WorkerInfo
    on_device: set[str] = dataclasses.field(default_factory=set)
    running: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Digests of each admitted sequence."""


class WorkerMetrics:
    """Knows each registration by the events of its worker and the commands to it."""

    def __init__(self, vllm: MetricTable, own: MetricTable) -> None:
        self._own = own
        self._registrations: dict[str, _Registration] = {}
        self._num_rows = vllm.histogram("vllm:iteration_tokens_total").series()
        self._num_looked_up = vllm.number("vllm:prefix_cache_queries_total")
        self._num_found = vllm.number("vllm:prefix_cache_hits_total")
        self._num_cached = vllm.number("vllm:prompt_tokens_cached_total")
        self._num_steps = own.number("loraplex_scheduled_steps_total")
        self._num_mixed_steps = own.number("loraplex_mixed_steps_total")

    def infos(self) -> list[events.WorkerInfo]:
        return [registration.info for registration in self._registrations.values()]

    def running_digests(self) -> frozenset[str]:
        """Versions that admitted sequences use."""
        every = (digests for worker in self._registrations.values() for digests in worker.running.values())
        return frozenset(digest for digests in every for digest in digests)

    def has_together(self, digests: Iterable[str]) -> bool:
        """Whether some worker has all of them on its device."""
        wanted = frozenset(digests)
        return any(wanted <= worker.on_device for worker in self._registrations.values())

    # --- events ---

    def on_event(self, event: events.Event) -> None:
        match event:
            case events.StepReported():
                self._on_step(event)
            case events.AdapterChanged():
                self._on_adapter(event)
            case events.WorkerConnected():
                self._registrations[event.info.worker_id] = _Registration(info=event.info)
            case events.WorkerLost():
                self._drop(event.worker_id, event.epoch)

    def _on_step(self, report: events.StepReported) -> None:
        registration = self._registration(report.worker_id, report.epoch)
        if registration is None:
            return
        self._num_steps.add()
        self._num_mixed_steps.add(len(report.adapter_digests) + report.has_base_rows > 1)
        self._num_rows.observe(report.num_rows)
        for hit in report.prefix_hits:
            self._num_found.add(hit.num_tokens)
            self._num_cached.add(hit.num_tokens)
        for finish in report.finishes:
            registration.running.pop(finish.sequence_id, None)

    def _on_adapter(self, changed: events.AdapterChanged) -> None:
        registration = self._registration(changed.worker_id, changed.epoch)
        if registration is None:
            return
        match changed.state:
            case events.WorkerAdapterState.DEVICE:
                registration.on_device.add(changed.digest)
            case events.WorkerAdapterState.EVICTED:
                registration.on_device.discard(changed.digest)
            case events.WorkerAdapterState.FAILED:
                reason = changed.error.reason if changed.error is not None else "ADAPTER_LOAD_FAILED"
                self._own.number("loraplex_adapter_load_failures_total").add(1, reason)

    # --- commands ---

    def on_command(self, command: commands.Command) -> None:
        match command:
            case commands.Admit():
                self._on_admit(command)
            case commands.Retire():
                registration = self._registration(command.worker_id, command.epoch)
                if registration is not None:
                    registration.running.pop(command.sequence_id, None)
            case commands.LoadAdapter():
                self._own.number("loraplex_adapter_load_orders_total").add()
            case commands.EvictAdapter():
                self._own.number("loraplex_adapter_eviction_orders_total").add()
            case commands.FenceWorker():
                self._drop(command.worker_id, command.epoch)

    def _on_admit(self, admit: commands.Admit) -> None:
        self._own.number("loraplex_admissions_total").add()
        if admit.prefix_namespace:
            self._num_looked_up.add(len(admit.prompt_ids) + len(admit.emitted_ids))
        registration = self._registration(admit.worker_id, admit.epoch)
        if registration is not None:
            registration.running[admit.sequence_id] = tuple(part.digest for part in admit.adapters)

    def _registration(self, worker_id: str, epoch: int) -> _Registration | None:
        registration = self._registrations.get(worker_id)
        return registration if registration is not None and registration.info.epoch == epoch else None

    def _drop(self, worker_id: str, epoch: int) -> None:
        if self._registration(worker_id, epoch) is not None:
            del self._registrations[worker_id]
