import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from loraplex_worker.engine.page_pool import AdapterOwner, KvOwner, OutOfPages, PagePool
from loraplex_worker.engine.report import PageCounts


def test_pages_are_counted_by_what_they_are_used_for():
    pool = PagePool(8)
    pool.take(KvOwner(1), 3)
    pool.take(AdapterOwner("a"), 2)
    assert pool.counts() == PageCounts(free=3, kv=3, adapter=2, total=8)
    assert pool.give_back(KvOwner(1)) == 3
    assert pool.counts() == PageCounts(free=6, kv=0, adapter=2, total=8)


def test_a_take_that_does_not_fit_takes_nothing():
    pool = PagePool(4)
    pool.take(KvOwner(1), 3)
    with pytest.raises(OutOfPages, match="2 pages wanted, 1 free"):
        pool.take(KvOwner(2), 2)
    assert pool.counts() == PageCounts(free=1, kv=3, adapter=0, total=4)
    assert pool.pages_of(KvOwner(2)) == ()


def test_an_owner_keeps_its_pages_in_the_order_it_took_them():
    pool = PagePool(6)
    first, second = pool.take(KvOwner(1), 2), pool.take(KvOwner(1), 3)
    assert pool.pages_of(KvOwner(1)) == (*first, *second)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_page_is_ever_lost_or_held_twice(orders: list[tuple[int, int]]):
    pool = PagePool(16)
    for key, num_pages in orders:
        owner = KvOwner(key) if key < 3 else AdapterOwner(str(key))
        if num_pages == 0:
            if pool.pages_of(owner):
                pool.give_back(owner)
        elif num_pages > pool.num_free:
            with pytest.raises(OutOfPages):
                pool.take(owner, num_pages)
        else:
            pool.take(owner, num_pages)
        pool.check()
