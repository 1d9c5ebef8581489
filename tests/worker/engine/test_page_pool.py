import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loraplex_worker.engine.page_pool import AdapterOwner, KvOwner, OutOfPages, Owner, PagePool
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
    kept, *_ = pool.take(KvOwner(1), 3)
    pool.keep(kept)
    with pytest.raises(OutOfPages, match="2 pages wanted, 1 free"):
        pool.take(KvOwner(2), 2, [kept])
    assert pool.counts() == PageCounts(free=1, kv=3, adapter=0, total=4)
    assert pool.pages_of(KvOwner(2)) == ()
    pool.check()


def test_an_owner_keeps_its_pages_in_the_order_it_took_them():
    pool = PagePool(6)
    first, second = pool.take(KvOwner(1), 2), pool.take(KvOwner(1), 3)
    assert pool.pages_of(KvOwner(1)) == (*first, *second)


def test_a_shared_page_is_charged_to_each_owner_and_frees_nothing_before_the_last_is_gone():
    pool = PagePool(8)
    pages = pool.take(KvOwner(1), 2)
    pool.keep(pages[0])
    assert pool.take(KvOwner(2), 3, pages[:1])[0] == pages[0]
    assert pool.counts() == PageCounts(free=3, kv=5, adapter=0, total=8)
    pool.give_back(KvOwner(1))
    assert pool.num_resting == 0
    pool.give_back(KvOwner(2))
    assert (pool.num_resting, pool.num_free) == (1, 8)


def test_resting_pages_are_reclaimed_last_the_longest_resting_first_and_last_pages_before_first_ones():
    reclaimed: list[int] = []
    pool = PagePool(6, on_reclaimed=reclaimed.append)
    old, new = pool.take(KvOwner(1), 2), pool.take(KvOwner(2), 2)
    for page in (*old, *new):
        pool.keep(page)
    pool.give_back(KvOwner(1))
    pool.give_back(KvOwner(2))
    pool.take(AdapterOwner("a"), 2)
    assert reclaimed == []
    pool.take(AdapterOwner("b"), 3)
    assert reclaimed == [old[1], old[0], new[1]]
    pool.check()


def test_a_page_that_is_to_be_shared_is_not_reclaimed_for_the_same_owner():
    reclaimed: list[int] = []
    pool = PagePool(3, on_reclaimed=reclaimed.append)
    pages = pool.take(KvOwner(1), 3)
    for page in pages:
        pool.keep(page)
    pool.give_back(KvOwner(1))
    assert pool.take(KvOwner(2), 3, pages[:2])[:2] == pages[:2]
    assert reclaimed == [pages[2]]


class PoolOrders(RuleBasedStateMachine):
    """Any order of takes, shares, exchanges and ends. The model: what is in each page, and how many each owner pays."""

    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.pool = PagePool(num_pages, on_reclaimed=self._on_reclaimed)
        self.holders: dict[Owner, list[int]] = {}
        self.kept: set[int] = set()
        self.resting: list[int] = []
        """Longest resting first."""
        self.next_id = 0

    def _on_reclaimed(self, page: int) -> None:
        assert not self._is_held(page), "a page was taken from under somebody"
        assert page == self.resting.pop(0), "another one rested longer"
        self.kept.remove(page)

    def _is_held(self, page: int) -> bool:
        return any(page in pages for pages in self.holders.values())

    @property
    def num_charged(self) -> int:
        return sum(len(pages) for pages in self.holders.values())

    def _take(self, owner: Owner, num_pages: int, shared: list[int]) -> None:
        if num_pages > self.num_pages - self.num_charged:
            with pytest.raises(OutOfPages):
                self.pool.take(owner, num_pages, shared)
            return
        self.resting = [page for page in self.resting if page not in shared]
        taken = self.pool.take(owner, num_pages, shared)
        assert taken[: len(shared)] == shared
        for page in taken[len(shared) :]:
            assert not self._is_held(page), "a page was given to two owners to write to"
            assert page not in self.kept, "a page was given away that can still be found"
        self.holders.setdefault(owner, []).extend(taken)

    @rule(data=st.data(), num_more=st.integers(0, 6))
    def begin(self, data: st.DataObject, num_more: int) -> None:
        shared = data.draw(st.lists(st.sampled_from(sorted(self.kept)), unique=True)) if self.kept else []
        self.next_id += 1
        self._take(KvOwner(self.next_id), len(shared) + num_more, shared)

    @rule(num_pages=st.integers(0, 6))
    def attach(self, num_pages: int) -> None:
        self.next_id += 1
        self._take(AdapterOwner(str(self.next_id)), num_pages, [])

    def _kv_owner(self, data: st.DataObject) -> KvOwner | None:
        owners = sorted(owner.sequence_id for owner in self.holders if isinstance(owner, KvOwner))
        return KvOwner(data.draw(st.sampled_from(owners))) if owners else None

    @rule(data=st.data(), num_pages=st.integers(0, 3))
    def grow(self, data: st.DataObject, num_pages: int) -> None:
        owner = self._kv_owner(data)
        if owner is not None:
            self._take(owner, num_pages, [])

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        owner = self._kv_owner(data)
        if owner is not None and self.holders[owner]:
            page = data.draw(st.sampled_from(self.holders[owner]))
            self.pool.keep(page)
            self.kept.add(page)

    @rule(data=st.data())
    def exchange(self, data: st.DataObject) -> None:
        owner = self._kv_owner(data)
        if owner is None:
            return
        pages = self.holders[owner]
        wanted = sorted(self.kept.difference(pages))
        places = [place for place, page in enumerate(pages) if page not in self.kept]
        if wanted and places:
            place, page = data.draw(st.sampled_from(places)), data.draw(st.sampled_from(wanted))
            self.pool.exchange(owner, place, page)
            self.resting = [other for other in self.resting if other != page]
            pages[place] = page

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.holders, key=repr)))
        pages = self.holders.pop(owner)
        assert self.pool.give_back(owner) == len(pages)
        self.resting += [page for page in reversed(pages) if page in self.kept and not self._is_held(page)]

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.drop(page)
        self.kept.remove(page)
        self.resting = [other for other in self.resting if other != page]

    @invariant()
    def the_ledger_is_that_of_a_pool_without_sharing(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert self.pool.num_free == self.num_pages - self.num_charged
        assert self.pool.kept_pages() == self.kept
        assert self.pool.num_resting == len(self.resting)
        for owner, pages in self.holders.items():
            assert self.pool.pages_of(owner) == tuple(pages)


TestPoolOrders = PoolOrders.TestCase
TestPoolOrders.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


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
