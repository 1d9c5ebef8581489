"""What the core shows of itself: plain values, taken between turns."""

import dataclasses

from loraplex_scheduler.core.ledger import PageCounts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatistics:
    digest: str
    num_pages: int
    num_leases: int
    is_on_device: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatistics:
    worker_id: str
    epoch: int
    device: str
    pages: PageCounts
    """As the scheduler's ledger has them; the worker has at least as many free."""
    num_running_sequences: int
    num_starving_sequences: int
    adapters: tuple[AdapterStatistics, ...]
    num_steps: int
    num_mixed_steps: int
    max_adapters_in_step: int
    num_output_tokens: int
    num_loads: int
    num_evictions: int
    num_preemptions: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CoreStatistics:
    num_queued_sequences: int
    num_queued_requests: int
    """Requests of which nothing was admitted yet."""
    num_running_requests: int
    num_leases: int
    max_context_tokens: int
    """The least of the connected workers; 0 if there is none."""
    workers: tuple[WorkerStatistics, ...]
