"""What the core shows of itself: plain values, taken between turns."""

import dataclasses
from collections.abc import Collection

from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.ledger import PageCounts
from loraplex_scheduler.core.lifecycle import State
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.residency import Tier
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker, WorkerCounters


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
    counters: WorkerCounters
    """A copy."""


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


def snapshot(
    *, requests: RequestTable, room: WaitingRoom, catalog: Catalog, workers: Collection[Worker]
) -> CoreStatistics:
    num_running = sum(any(sequence.state is State.ADMITTED for sequence in request.sequences) for request in requests)
    return CoreStatistics(
        num_queued_sequences=len(room),
        num_queued_requests=room.num_new_requests,
        num_running_requests=num_running,
        num_leases=catalog.num_all_leases,
        max_context_tokens=min((worker.info.max_context_tokens for worker in workers), default=0),
        workers=tuple(_worker(worker, catalog) for worker in workers),
    )


def _worker(worker: Worker, catalog: Catalog) -> WorkerStatistics:
    return WorkerStatistics(
        worker_id=worker.worker_id,
        epoch=worker.info.epoch,
        device=worker.info.device,
        pages=worker.ledger.counts(),
        num_running_sequences=len(worker.sequences),
        num_starving_sequences=len(worker.starving),
        adapters=tuple(
            AdapterStatistics(
                digest=resident.digest,
                num_pages=worker.ledger.adapter_pages(resident.digest),
                num_leases=catalog.num_leases(resident.digest),
                is_on_device=resident.tier is Tier.DEVICE,
            )
            for resident in worker.residency
        ),
        counters=dataclasses.replace(worker.counters),
    )
