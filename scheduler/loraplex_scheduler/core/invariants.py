"""What must hold after every turn, as assertions over everything that the core owns."""

from collections.abc import Collection

from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.lifecycle import State
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


def check_all(*, requests: RequestTable, room: WaitingRoom, catalog: Catalog, workers: Collection[Worker]) -> None:
    """AssertionError names the first thing that does not hold."""
    room.check()
    for worker in workers:
        worker.check()
    catalog.check((request.tenant, request.adapters) for request in requests)
    _check_sequences(requests, room, workers)
    if not len(requests):
        assert catalog.num_all_leases == 0, "idle, and a lease is held"


def _check_sequences(requests: RequestTable, room: WaitingRoom, workers: Collection[Worker]) -> None:
    """Each sequence that has no end is in the queue or on exactly one worker, and nothing else is."""
    num_queued = num_admitted = 0
    for request in requests:
        unfinished = request.unfinished()
        assert len(unfinished) == request.num_unfinished > 0, f"{request.key} has no end"
        for sequence in unfinished:
            is_queued = sequence.state is State.QUEUED
            assert is_queued == (sequence in room), sequence
            num_queued += is_queued
            num_admitted += not is_queued
    assert num_queued == len(room), "the queue holds a sequence that has ended"
    assert num_admitted == sum(len(worker.sequences) for worker in workers), "a worker runs one that has ended"
