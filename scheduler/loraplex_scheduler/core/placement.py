"""Which worker a sequence should run on: where its adapters are, then where the load is least."""

from collections.abc import Iterable

from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.worker import Worker

_READY, _MOVING, _MISSING = range(3)


def rank(sequence: Sequence, workers: Iterable[Worker]) -> list[Worker]:
    """The workers, best first: its home, all adapters on the device, on their way, absent; then the least loaded."""
    ranked = list(workers)
    if len(ranked) > 1:
        ranked.sort(key=lambda worker: (worker.worker_id != sequence.home_id, *_score(sequence, worker)))
    return ranked


def _score(sequence: Sequence, worker: Worker) -> tuple[int, int, float, str]:
    digests = sequence.request.digests
    missing = len(worker.residency.missing(digests))
    tier = _MISSING if missing else _MOVING if worker.residency.is_moving(digests) else _READY
    return tier, missing, _load(worker), worker.worker_id


def _load(worker: Worker) -> float:
    """0 to 1: the scarcer of sequence slots and pages."""
    slots = len(worker.sequences) / worker.info.max_sequences
    return max(slots, 1 - worker.ledger.free / worker.info.num_pages)
