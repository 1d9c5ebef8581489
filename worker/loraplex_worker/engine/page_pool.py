"""The one pool of device pages, shared by KV cache and adapters, and its ledger."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

from loraplex_worker.engine.report import PageCounts


class OutOfPages(Exception):
    """The pool holds fewer free pages than were asked for; nothing was taken."""

    def __init__(self, num_wanted: int, num_free: int) -> None:
        super().__init__(f"{num_wanted} pages wanted, {num_free} free")
        self.num_wanted = num_wanted
        self.num_free = num_free


@dataclasses.dataclass(frozen=True, slots=True)
class KvOwner:
    """A live sequence."""

    sequence_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterOwner:
    """An attached adapter."""

    digest: str


Owner = KvOwner | AdapterOwner


class PagePool:
    """Owners of ``num_pages`` pages. Not thread-safe: the engine owns it.

    Several owners may hold one page, and each is charged for it in full: the ledger is what it would be without
    sharing, and the scheduler can keep it without knowing what is shared. Pages that somebody holds are thus never
    more than the ledger has charged, so what the ledger calls free can always be taken.

    A page that is kept (``keep``) rests when its last owner goes: it counts as free, keeps its content, and is
    reclaimed once there is no other page, the longest resting one first. Of the others the last one given back is the
    first taken, so that a busy pool stays in the cache of the memory system.
    """

    def __init__(self, num_pages: int, on_reclaimed: Callable[[int], None] = lambda page: None) -> None:
        """Args: on_reclaimed: told of a resting page before somebody else gets it; it is kept no more."""
        assert num_pages > 0, num_pages
        self._num_pages = num_pages
        self._on_reclaimed = on_reclaimed
        self._blank = list(range(num_pages - 1, -1, -1))
        """Held by nobody, content worthless."""
        self._resting: collections.OrderedDict[int, None] = collections.OrderedDict()
        """Held by nobody, kept; the longest resting one first."""
        self._kept: set[int] = set()
        self._num_holders = [0] * num_pages
        self._owned: dict[Owner, list[int]] = {}
        self._num_kv = 0
        self._num_adapter = 0

    @property
    def num_free(self) -> int:
        """By the ledger. Sharing makes the pages that could be taken more than these, never fewer."""
        return self._num_pages - self._num_kv - self._num_adapter

    @property
    def num_resting(self) -> int:
        return len(self._resting)

    def take(self, owner: Owner, num_pages: int, shared: Sequence[int] = ()) -> list[int]:
        """Charge ``owner`` for ``num_pages``: those of ``shared`` first, then pages that nobody holds; all or nothing.

        Raises:
            OutOfPages: fewer are free.
        """
        assert num_pages >= len(shared), (num_pages, shared)
        if num_pages > self.num_free:
            raise OutOfPages(num_pages, self.num_free)
        # First: a page that is to be shared must not be reclaimed for the rest.
        for page in shared:
            self._hold_kept(page)
        taken = [*shared, *(self._take_one() for _ in range(num_pages - len(shared)))]
        self._owned.setdefault(owner, []).extend(taken)
        self._charge(owner, num_pages)
        return taken

    def exchange(self, owner: Owner, place: int, page: int) -> None:
        """Let ``owner`` hold the kept ``page`` instead of its own one at ``place``. The ledger stays."""
        pages = self._owned[owner]
        self._hold_kept(page)
        self._let_go(pages[place])
        pages[place] = page

    def give_back(self, owner: Owner) -> int:
        """Free everything that ``owner`` holds; returns how many pages that was.

        Its last pages come to rest first, hence go first: a page is of no use without those before it.
        """
        pages = self._owned.pop(owner)
        for page in reversed(pages):
            self._let_go(page)
        self._charge(owner, -len(pages))
        return len(pages)

    def keep(self, page: int) -> None:
        """Let a held page rest, instead of being blank, when its last owner goes."""
        assert self._num_holders[page] > 0, page
        self._kept.add(page)

    def drop(self, page: int) -> None:
        """Keep it no more."""
        self._kept.discard(page)
        if page in self._resting:
            del self._resting[page]
            self._blank.append(page)

    def pages_of(self, owner: Owner) -> tuple[int, ...]:
        return tuple(self._owned.get(owner, ()))

    def kept_pages(self) -> frozenset[int]:
        return frozenset(self._kept)

    def counts(self) -> PageCounts:
        return PageCounts(free=self.num_free, kv=self._num_kv, adapter=self._num_adapter, total=self._num_pages)

    def check(self) -> None:
        """Assert that every page is in exactly one state and that the counters say so. O(pages)."""
        num_holders = [0] * self._num_pages
        for pages in self._owned.values():
            assert len(set(pages)) == len(pages), "an owner holds a page twice"
            for page in pages:
                num_holders[page] += 1
        assert num_holders == self._num_holders, "the holders of a page were miscounted"
        held = [page for page, count in enumerate(num_holders) if count]
        assert sorted([*held, *self._blank, *self._resting]) == list(range(self._num_pages)), "a page is lost or twice"
        assert self._kept.issuperset(self._resting), "a page rests that is not kept"
        assert self._kept.isdisjoint(self._blank), "a blank page is kept"
        self._check_ledger(len(held))

    def _check_ledger(self, num_held: int) -> None:
        by_adapters = [p for owner, pages in self._owned.items() if isinstance(owner, AdapterOwner) for p in pages]
        num_charged = sum(len(pages) for pages in self._owned.values())
        assert all(self._num_holders[page] == 1 for page in by_adapters), "a page of an adapter is shared"
        assert self._kept.isdisjoint(by_adapters), "a page of an adapter is kept"
        assert (num_charged - len(by_adapters), len(by_adapters)) == (self._num_kv, self._num_adapter), "drifted"
        assert num_held <= self._num_kv + self._num_adapter <= self._num_pages, "the ledger promises held pages"

    def _take_one(self) -> int:
        if self._blank:
            page = self._blank.pop()
        else:
            page, _ = self._resting.popitem(last=False)
            self._kept.remove(page)
            self._on_reclaimed(page)
        self._num_holders[page] = 1
        return page

    def _hold_kept(self, page: int) -> None:
        assert page in self._kept, page
        self._resting.pop(page, None)
        self._num_holders[page] += 1

    def _let_go(self, page: int) -> None:
        self._num_holders[page] -= 1
        if self._num_holders[page]:
            return
        if page in self._kept:
            self._resting[page] = None
        else:
            self._blank.append(page)

    def _charge(self, owner: Owner, num_pages: int) -> None:
        if isinstance(owner, KvOwner):
            self._num_kv += num_pages
        else:
            self._num_adapter += num_pages
