"""The one pool of device pages, shared by KV cache and adapters, and its ledger."""

import dataclasses

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
    """Free list and owners of ``num_pages`` pages. Not thread-safe: the engine owns it.

    The last page given back is the first taken, so a busy pool stays in the cache of the memory system.
    """

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, num_pages
        self._num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._owned: dict[Owner, list[int]] = {}
        self._num_kv = 0
        self._num_adapter = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, owner: Owner, num_pages: int) -> list[int]:
        """Move ``num_pages`` from the free list to ``owner``; all or nothing.

        Raises:
            OutOfPages: fewer are free.
        """
        assert num_pages >= 0, num_pages
        if num_pages > len(self._free):
            raise OutOfPages(num_pages, len(self._free))
        cut = len(self._free) - num_pages
        taken = self._free[cut:][::-1]
        del self._free[cut:]
        self._owned.setdefault(owner, []).extend(taken)
        self._add(owner, num_pages)
        return taken

    def give_back(self, owner: Owner) -> int:
        """Free everything that ``owner`` holds; returns how many pages that was."""
        pages = self._owned.pop(owner)
        self._free.extend(reversed(pages))
        self._add(owner, -len(pages))
        return len(pages)

    def pages_of(self, owner: Owner) -> tuple[int, ...]:
        return tuple(self._owned.get(owner, ()))

    def counts(self) -> PageCounts:
        return PageCounts(free=len(self._free), kv=self._num_kv, adapter=self._num_adapter, total=self._num_pages)

    def check(self) -> None:
        """Assert that every page is in exactly one place and that the counters say so. O(pages)."""
        held = [page for pages in self._owned.values() for page in pages]
        assert sorted(held + self._free) == list(range(self._num_pages)), "a page is lost or held twice"
        num_kv = sum(len(pages) for owner, pages in self._owned.items() if isinstance(owner, KvOwner))
        assert (num_kv, len(held) - num_kv) == (self._num_kv, self._num_adapter), "the page counters drifted"
        counts = self.counts()
        assert counts.free + counts.kv + counts.adapter == counts.total, counts

    def _add(self, owner: Owner, num_pages: int) -> None:
        if isinstance(owner, KvOwner):
            self._num_kv += num_pages
        else:
            self._num_adapter += num_pages
