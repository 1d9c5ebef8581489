"""Which worker: where the adapters are, then by hashing; more replicas under load, fewer later; prefixes break ties."""

from collections import Counter

from loraplex_scheduler.core import command as commands
from tests.scheduler.rig import Rig

SECRET = b"s" * 32
WIDE = {"num_pages": 400, "max_sequences": 8, "max_step_tokens": 512, "max_context_tokens": 400}


def where(rig: Rig) -> list[str]:
    return [admit.worker_id for admit in rig.of_kind(commands.Admit)]


def loads(rig: Rig) -> list[tuple[str, str]]:
    return [(load.worker_id, load.digest) for load in rig.of_kind(commands.LoadAdapter)]


def test_requests_of_an_adapter_go_where_it_is():
    rig = Rig()
    for worker_id in ("v", "w", "x"):
        rig.connect_worker(worker_id, **WIDE)
    rig.register("poet")
    for _ in range(6):
        rig.finish(rig.submit("poet"))
    assert len(set(where(rig))) == 1
    assert len(loads(rig)) == 1


def test_adapters_spread_by_hashing_and_one_worker_more_moves_only_its_part():
    homes = []
    for worker_ids in (("v", "w"), ("v", "w", "x")):
        rig = Rig()
        for worker_id in worker_ids:
            rig.connect_worker(worker_id, **WIDE)
        for number in range(60):
            rig.register(f"a{number}", pages=1)
            rig.finish(rig.submit(f"a{number}", max_tokens=1))
        homes.append({digest: worker_id for worker_id, digest in loads(rig)})
    assert min(Counter(homes[0].values()).values()) >= 18, "some half each"
    moved = {digest for digest, worker_id in homes[1].items() if worker_id != homes[0][digest]}
    assert 10 <= len(moved) <= 30, "a third"
    assert {homes[1][digest] for digest in moved} == {"x"}


def test_an_adapter_gets_one_more_worker_when_its_requests_wait_and_loses_it_later():
    rig = Rig(replica_wait_ns=500_000_000, replica_cooldown_ns=2_000_000_000)
    for worker_id in ("v", "w", "x"):
        rig.connect_worker(worker_id, num_pages=400, max_sequences=2)
    digest = rig.register("poet")
    clients = [rig.submit("poet", max_tokens=28) for _ in range(12)]
    assert len(set(where(rig))) == 1, "a burst alone does not spread it"
    rig.pass_time(0.6)
    assert len(set(where(rig))) == 2
    rig.pass_time(0.6)
    assert len(set(where(rig))) == 3
    rig.finish(*clients)
    placement = rig.core._placement
    assert placement.num_replicas((digest,)) == 3
    for _ in range(4):
        rig.pass_time(2.5)
        rig.finish(rig.submit("poet", max_tokens=1))
    rig.pass_time(2.5)
    assert placement.num_replicas((digest,)) == 1


def test_no_more_replicas_than_the_operator_allows():
    rig = Rig(replica_wait_ns=500_000_000, max_replicas=2)
    for worker_id in ("v", "w", "x"):
        rig.connect_worker(worker_id, num_pages=400, max_sequences=2)
    rig.register("poet")
    for _ in range(12):
        rig.submit("poet", max_tokens=28)
    for _ in range(6):
        rig.pass_time(0.6)
    assert len(set(where(rig))) == 2


def test_a_prompt_goes_where_its_first_tokens_are_cached_among_workers_that_are_as_free():
    rig = Rig(prefix_secret=SECRET)
    for worker_id in ("v", "w"):
        rig.connect_worker(worker_id, **WIDE)
    first = rig.submit(prompt_ids=tuple(range(40)))
    rig.finish(first)
    home = where(rig)[0]
    other = [rig.submit(prompt_ids=tuple(range(100 * number, 100 * number + 40))) for number in range(1, 3)]
    rig.finish(*other)
    for _ in range(3):
        rig.finish(rig.submit(prompt_ids=(*range(40), 7)))
        assert where(rig)[-1] == home


def test_a_cached_prefix_draws_nobody_to_a_worker_that_is_clearly_busier():
    rig = Rig(prefix_secret=SECRET)
    for worker_id in ("v", "w"):
        rig.connect_worker(worker_id, **WIDE)
    first = rig.submit(prompt_ids=tuple(range(40)))
    rig.finish(first)
    home = where(rig)[0]
    held = [rig.submit(prompt_ids=(*range(40), number), max_tokens=28) for number in range(10)]
    placed = where(rig)[1:]
    assert len(placed) == len(held)
    assert placed[:2] == [home, home]
    assert set(placed) == {"v", "w"}, "the busier it gets the less a prefix is worth"
