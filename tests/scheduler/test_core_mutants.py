"""Wrong behaviours, planted one at a time: the state machine must notice each, or its invariants prove nothing."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from loraplex_scheduler.core import reports
from loraplex_scheduler.core.batcher import Batcher
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.drains import Drains
from loraplex_scheduler.core.endings import Endings
from loraplex_scheduler.core.ledger import Ledger
from loraplex_scheduler.core.loader import Loader
from loraplex_scheduler.core.residency import Residency, Standby, Tier
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.unregistering import Unregistering
from loraplex_scheduler.core.worker import Worker
from tests.scheduler.core_machine import CoreMachine, OneWorkerMachine

# Enough to find every mutant below; shrinking would only cost time.
HUNT = settings(
    max_examples=1500,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
    report_multiple_bugs=False,
)


def pages_of_a_finished_sequence_are_kept(patch):
    release = Ledger.release_kv
    patch.setattr(Ledger, "release_kv", lambda self, id: release(self, id) if id % 2 else None)


def pages_are_given_twice(patch):
    patch.setattr(Ledger, "_take", lambda self, num_pages: setattr(self, "free", self.free - max(0, num_pages - 1)))


def an_adapter_that_is_still_loading_counts_as_there(patch):
    there = (Tier.LOADING, Tier.DEVICE)
    patch.setattr(Residency, "has_all", lambda self, digests: all(self.tier(d) in there for d in digests))


def an_adapter_in_use_is_evicted(patch):
    standby = Residency._standby

    def never_in_use(self, resident):
        return Standby.IDLE if resident.num_users else standby(self, resident)

    patch.setattr(Residency, "_standby", never_in_use)


def a_lease_is_never_dropped(patch):
    patch.setattr(Catalog, "release", lambda self, tenant, adapters: None)


def a_lease_is_dropped_at_the_first_of_n_finishes(patch):
    count_down = Endings._count_down

    def drop_early(self, request):
        if request.num_unfinished == len(request.sequences) > 1:
            self._catalog.release(request.tenant, request.adapters)
        count_down(self, request)

    patch.setattr(Endings, "_count_down", drop_early)


def a_cancelled_sequence_is_not_retired(patch):
    patch.setattr(Standing, "_retire", lambda self, sequence: None)


def a_lost_worker_s_sequences_are_forgotten(patch):
    lose = Standing.lose

    def forget(self, worker, *, now_ns):
        lost = lose(self, worker, now_ns=now_ns)
        for sequence in lost:
            self._room.remove(sequence)
        return lost

    patch.setattr(Standing, "lose", forget)


def a_resumed_sequence_starts_again_from_its_prompt(patch):
    requeue = Standing._requeue

    def restart(self, sequence, transition, *, now_ns):
        sequence.emitted.clear()
        requeue(self, sequence, transition, now_ns=now_ns)

    patch.setattr(Standing, "_requeue", restart)


def repeated_tokens_are_sent_again(patch):
    take = reports.Reports._take_tokens

    def no_trimming(self, worker, sequence, emission, *, now_ns):
        known = sequence.num_output
        if emission.first_index < known:
            del sequence.emitted[emission.first_index :]
        take(self, worker, sequence, emission, now_ns=now_ns)

    patch.setattr(reports.Reports, "_take_tokens", no_trimming)


def reports_of_an_old_registration_are_believed(patch):
    patch.setattr(SchedulerCore, "_worker", lambda self, worker_id, epoch: self._workers.get(worker_id))


def nobody_is_ever_overdue(patch):
    patch.setattr(Drains, "is_overdue", lambda self, sequence, *, now_ns: False)


def a_drain_closes_nothing(patch):
    patch.setattr(Drains, "_owes", lambda self, sequence, worker: False)


def a_grant_that_finds_no_room_is_forgotten(patch):
    extend = Standing.extend

    def forget(self, sequence):
        if extend(self, sequence):
            return True
        self.worker_of(sequence).starving.discard(sequence.sequence_id)
        return False

    patch.setattr(Standing, "extend", forget)


def the_slots_of_a_worker_are_not_counted(patch):
    patch.setattr(Worker, "has_slot", property(lambda self: True))
    patch.setattr(Batcher, "_has_slots_for", lambda self, sequence, worker: True)


def a_failed_load_keeps_its_pages(patch):
    on_failed = Loader.on_failed

    def keep(self, worker, digest, error, *, now_ns):
        pages = worker.ledger.adapter_pages(digest)
        told = on_failed(self, worker, digest, error, now_ns=now_ns)
        if pages and worker.residency.tier(digest) is Tier.FAILED:
            worker.ledger.charge_adapter(digest, pages)
        return told

    patch.setattr(Loader, "on_failed", keep)


def nobody_is_told_of_a_failed_load(patch):
    patch.setattr(Batcher, "fail_waiting", lambda self, digest, *, now_ns: None)
    patch.setattr(Batcher, "_failure", lambda self, lane, *, now_ns: None)
    patch.setattr(Residency, "allow", lambda self, digest, *, now_ns: False)


def an_unregistered_name_is_gone_at_once(patch):
    patch.setattr(Unregistering, "_are_released", lambda self, digests, *, now_ns: True)


def an_unregistered_name_is_never_gone(patch):
    patch.setattr(Unregistering, "settle", lambda self, *, now_ns: None)


def an_unknown_adapter_is_the_base_model(patch):
    resolve = Catalog.resolve

    def fall_back(self, tenant, parts):
        return resolve(self, tenant, [part for part in parts if (tenant, part.name) in self._entries])

    patch.setattr(Catalog, "resolve", fall_back)


def deadlines_are_not_looked_at(patch):
    patch.setattr(SchedulerCore, "_on_due", lambda self, due, request: None)


def a_finish_is_sent_twice(patch):
    finish = Endings.finish

    def twice(self, sequence, reason, **kwargs):
        finish(self, sequence, reason, **kwargs)
        self._emit(self._emit.__self__._commands[-1])

    patch.setattr(Endings, "finish", twice)


def a_page_too_few_is_reserved(patch):
    pages = Worker.kv_pages_for
    patch.setattr(Worker, "kv_pages_for", lambda self, s, grant: max(1, pages(self, s, grant) - 1))


MUTANTS = [
    pages_of_a_finished_sequence_are_kept,
    pages_are_given_twice,
    a_page_too_few_is_reserved,
    an_adapter_that_is_still_loading_counts_as_there,
    an_adapter_in_use_is_evicted,
    a_lease_is_never_dropped,
    a_lease_is_dropped_at_the_first_of_n_finishes,
    a_cancelled_sequence_is_not_retired,
    a_lost_worker_s_sequences_are_forgotten,
    a_resumed_sequence_starts_again_from_its_prompt,
    repeated_tokens_are_sent_again,
    reports_of_an_old_registration_are_believed,
    nobody_is_ever_overdue,
    a_drain_closes_nothing,
    a_grant_that_finds_no_room_is_forgotten,
    the_slots_of_a_worker_are_not_counted,
    a_failed_load_keeps_its_pages,
    nobody_is_told_of_a_failed_load,
    an_unregistered_name_is_gone_at_once,
    an_unregistered_name_is_never_gone,
    an_unknown_adapter_is_the_base_model,
    deadlines_are_not_looked_at,
    a_finish_is_sent_twice,
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_state_machine_notices_that(mutant, monkeypatch):
    mutant(monkeypatch)
    # An AssertionError is an invariant that broke. Anything else would be a mutant that merely crashes.
    with pytest.raises(AssertionError):
        hunt()


def hunt() -> None:
    for machine in (OneWorkerMachine, CoreMachine):
        run_state_machine_as_test(machine, settings=HUNT)
