"""The virtual worker keeps books of its own, so that a core that errs is found out."""

from typing import Any

import pytest

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.sampling import GREEDY
from loraplex_scheduler.simulation.event_heap import EventHeap
from loraplex_scheduler.simulation.virtual_worker import VirtualWorker
from tests.simulation.small_workload import PRESET

TO_WORKER: dict[str, Any] = {"worker_id": "w", "epoch": 1}


class Bench:
    """One worker and all that it says, with the time it was said."""

    def __init__(self):
        self.heap = EventHeap()
        self.said = []
        self.worker = VirtualWorker(PRESET.worker_info("w", 1), PRESET, {"d": 16, "e": 16}, self.heap, self.hear)

    def hear(self, event):
        self.said.append((self.heap.now_ns, event))

    def run(self):
        for _ in range(1000):
            if not self.heap:
                self.worker.check()
                return
            self.heap.advance()
        raise AssertionError("it does not come to rest")

    def reports(self):
        return [event for _, event in self.said if isinstance(event, events.StepReported)]


@pytest.fixture
def bench():
    return Bench()


def admit(sequence_id, *digests, num_prompt=8, max_tokens=3, grant_tokens=3, emitted=()):
    return commands.Admit(
        **TO_WORKER,
        sequence_id=sequence_id,
        prompt_ids=(0,) * num_prompt,
        emitted_ids=emitted,
        adapters=tuple(commands.AdapterWeight(digest=digest, weight=1.0) for digest in digests),
        sampling=GREEDY,
        stop_token_ids=(),
        max_tokens=max_tokens,
        min_tokens=0,
        grant_tokens=grant_tokens,
    )


def load(digest):
    return commands.LoadAdapter(**TO_WORKER, digest=digest, num_pages=PRESET.adapter_pages(16), timeout_ns=1)


def evict(digest):
    return commands.EvictAdapter(**TO_WORKER, digest=digest)


def test_decode_rows_come_first_and_prefill_takes_what_is_left_of_the_budget(bench):
    bench.worker.receive([commands.SetBudget(**TO_WORKER, max_step_tokens=10), admit(1, num_prompt=4)])
    bench.worker.receive([admit(2, num_prompt=12), admit(3, num_prompt=8)])
    bench.run()
    assert [(r.num_decode_rows, r.num_rows) for r in bench.reports()] == [
        (0, 4),
        (1, 10),
        (1, 10),
        (1, 3),
        (2, 2),
        (1, 1),
    ]


def test_a_sequence_waits_where_its_grant_ends(bench):
    bench.worker.receive([admit(1, max_tokens=4, grant_tokens=2)])
    bench.run()
    assert len(bench.reports()) == 2
    bench.worker.receive([commands.Grant(**TO_WORKER, sequence_id=1, grant_tokens=4)])
    bench.run()
    assert [r.finishes != () for r in bench.reports()] == [False, False, False, True]
    assert bench.worker.num_running == 0


def test_a_resumed_sequence_goes_on_at_the_next_index(bench):
    bench.worker.receive([admit(1, max_tokens=5, grant_tokens=5, emitted=(0, 0, 0))])
    bench.run()
    first, second = bench.reports()
    assert (first.num_rows, first.emissions[0].first_index, second.emissions[0].first_index) == (11, 3, 4)


def test_commands_take_effect_between_steps(bench):
    bench.worker.receive([admit(1, max_tokens=2, grant_tokens=2)])
    bench.worker.receive([commands.Retire(**TO_WORKER, sequence_id=1)])
    bench.run()
    assert len(bench.reports()) == 1


def test_loads_take_their_time_beside_the_steps_and_wait_for_a_channel(bench):
    bench.worker.receive([load("d"), load("e"), admit(1)])
    bench.run()
    load_ns = PRESET.load.load_ns(PRESET.adapter_bytes(16))
    arrived = {e.digest: t for t, e in bench.said if isinstance(e, events.AdapterChanged)}
    assert PRESET.load.num_channels == 2
    assert min(arrived.values()) >= load_ns
    ends = [t for t, e in bench.said if isinstance(e, events.StepReported)]
    assert set(arrived.values()) <= {load_ns, *ends}


def test_the_distinct_adapters_and_base_rows_of_a_step_are_reported(bench):
    bench.worker.receive([load("d"), load("e")])
    bench.run()
    bench.worker.receive([admit(1, "d"), admit(2, "d", "e"), admit(3)])
    bench.run()
    assert bench.reports()[0].adapter_digests == {"d", "e"}
    assert bench.reports()[0].has_base_rows


def test_an_adapter_that_is_not_there_is_found_out(bench):
    with pytest.raises(AssertionError, match="without its adapter"):
        bench.worker.receive([admit(1, "d")])


def test_an_eviction_in_use_is_found_out(bench):
    bench.worker.receive([load("d")])
    bench.run()
    bench.worker.receive([admit(1, "d", max_tokens=9, grant_tokens=2)])
    bench.run()
    with pytest.raises(AssertionError, match="evicted while in use"):
        bench.worker.receive([evict("d")])


def test_pages_that_are_not_there_are_found_out(bench):
    with pytest.raises(AssertionError, match="are free"):
        bench.worker.receive([admit(1, num_prompt=PRESET.num_pages * PRESET.page_size, grant_tokens=1)])


def test_pages_come_back(bench):
    for sequence_id in range(1, 40):
        bench.worker.receive([admit(sequence_id, num_prompt=200)])
        bench.run()
    assert sum(len(r.finishes) for r in bench.reports()) == 39
