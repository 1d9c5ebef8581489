"""What the core tells workers about who shares prefixes, and what it makes of the hits that they report."""

import pytest

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.prefix_namespace import prefix_namespace
from tests.scheduler.model_worker import ModelWorker
from tests.scheduler.rig import Rig

SECRET = b"s" * 32


def hit(worker: ModelWorker, sequence_id: int, num_tokens: int) -> events.StepReported:
    hits = (events.PrefixHit(sequence_id=sequence_id, num_tokens=num_tokens),)
    return events.StepReported(worker_id=worker.info.worker_id, epoch=worker.info.epoch, step=1, prefix_hits=hits)


def namespaces(rig: Rig) -> list[bytes]:
    return [admit.prefix_namespace for admit in rig.of_kind(commands.Admit)]


def test_a_tenant_s_requests_share_a_namespace_and_no_other_tenant_has_it():
    rig = Rig(prefix_secret=SECRET)
    rig.connect_worker()
    for tenant in ("red", "blue"):
        rig.register("poet", tenant=tenant)
        for _ in range(2):
            rig.finish(rig.submit("poet", tenant=tenant), rig.submit(tenant=tenant))
    red, blue = namespaces(rig)[:4], namespaces(rig)[4:]
    assert len(set(red)) == len(set(blue)) == 1
    assert red[0] != blue[0]
    assert len(red[0]) == len(blue[0]) == 32


def test_only_requests_without_adapters_share_across_tenants_and_only_where_the_operator_allows():
    rig = Rig(prefix_secret=SECRET, share_base_prefixes=True)
    rig.connect_worker()
    for tenant in ("red", "blue"):
        rig.register("poet", tenant=tenant)
        rig.finish(rig.submit("poet", tenant=tenant))
        rig.finish(rig.submit(tenant=tenant))
    red_poet, red_base, blue_poet, blue_base = namespaces(rig)
    assert red_base == blue_base
    assert len({red_poet, blue_poet, red_base}) == 3


def test_a_namespace_depends_on_the_secret_and_none_comes_without_one():
    one, other = (CoreConfig(prefix_secret=secret) for secret in (SECRET, b"t" * 32))
    assert prefix_namespace(one, "red", is_base=False) != prefix_namespace(other, "red", is_base=False)
    assert prefix_namespace(CoreConfig(), "red", is_base=True) == b""


def test_a_hit_is_usage_s_cached_tokens():
    rig = Rig()
    worker = rig.connect_worker()
    cached, cold = rig.submit(num_prompt=9), rig.submit(num_prompt=9)
    rig.turn(hit(worker, rig.of_kind(commands.Admit)[0].sequence_id, 8))
    rig.finish(cached, cold)
    assert cached.finishes[0].usage.num_cached_tokens == 8
    assert cold.finishes[0].usage.num_cached_tokens == 0


def test_what_a_resumed_sequence_finds_was_not_computed_again():
    rig = Rig()
    rig.connect_worker("w")
    client = rig.submit(num_prompt=9, max_tokens=12)
    rig.turn(hit(rig.workers["w"], rig.of_kind(commands.Admit)[-1].sequence_id, 4))
    rig.step(3)
    rig.lose_worker("w")
    rig.connect_worker("v")
    rig.turn(hit(rig.workers["v"], rig.of_kind(commands.Admit)[-1].sequence_id, 8))
    rig.finish(client)
    usage = client.finishes[0].usage
    assert (usage.num_cached_tokens, usage.num_recomputed_tokens) == (4, 9 + 3 - 8)


@pytest.mark.parametrize("num_tokens", [0, 9, 400])
def test_a_hit_that_cannot_be_fences_the_worker(num_tokens: int):
    rig = Rig()
    worker = rig.connect_worker()
    client = rig.submit(num_prompt=9)
    rig.turn(hit(worker, rig.of_kind(commands.Admit)[0].sequence_id, num_tokens))
    assert len(rig.of_kind(commands.FenceWorker)) == 1
    rig.workers.pop("w")
    rig.connect_worker()
    rig.finish(client)


def test_a_hit_of_a_sequence_that_is_gone_is_dropped():
    rig = Rig()
    worker = rig.connect_worker()
    rig.finish(rig.submit(num_prompt=9))
    rig.turn(hit(worker, rig.of_kind(commands.Admit)[0].sequence_id, 4))
    assert rig.of_kind(commands.FenceWorker) == []
