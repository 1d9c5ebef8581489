"""The workers, their pages and what they hold."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResidentAdapter:
    """A version on a worker's device."""

    digest: str
    num_pages: int
    num_leases: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker. Free + KV + adapter pages = total, always."""

    worker_id: str
    device: str
    num_pages_total: int
    num_pages_free: int
    num_pages_kv: int
    num_pages_adapter: int
    num_running_sequences: int
    adapters: tuple[ResidentAdapter, ...]
    num_steps: int
    num_mixed_steps: int
    """Steps with rows of two adapters, or of an adapter and the base model."""
    max_adapters_in_step: int
    num_output_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All workers and the queue in front of them."""

    workers: tuple[Worker, ...]
    num_queued_requests: int
    num_running_requests: int
    epoch: int
