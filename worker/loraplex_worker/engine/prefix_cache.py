"""KV pages that can be found again by what they hold."""

from collections.abc import Iterable

from loraplex_worker.engine.page_pool import KvOwner, PagePool
from loraplex_worker.engine.sequence import Sequence
from loraplex_worker.model.kv_cache import KvCache


class PrefixCache:
    """Complete pages by key (``loraplex_contract.prefix_key``). The engine owns it, and the pool behind it.

    A page can be found once every row of it is computed, and only if all that it holds is finite. Nobody writes to it
    from then on: a sequence that starts behind it writes to pages of its own. When no sequence holds it any more it
    rests in the pool until its place is needed.
    """

    def __init__(self, kv: KvCache) -> None:
        self.pool = PagePool(kv.num_pages, on_reclaimed=self._on_reclaimed)
        self._kv = kv
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_pages(self) -> int:
        """Pages that can be found, resting or held."""
        return len(self._page_of)

    def find(self, sequence: Sequence) -> list[int]:
        """Pages that the sequence, as far as it is, could go on behind.

        Its last token is never among them: computing it is what gives the next one. Nor is anything of a sequence that
        wants to know how likely its prompt is, since that takes every row.
        """
        if sequence.page_keys is None or sequence.prompt_logprobs is not None:
            return []
        first, last = sequence.num_computed // self._kv.page_size, (len(sequence.tokens) - 1) // self._kv.page_size
        found: list[int] = []
        for number in range(first, last):
            page = self._page_of.get(sequence.page_keys[number])
            if page is None:
                break
            found.append(page)
        return found

    def take(self, sequence: Sequence, num_pages: int) -> None:
        """Charge a new sequence for ``num_pages``; it starts behind what is there of it already.

        Raises:
            OutOfPages: by the ledger; the sequence got none.
        """
        found = self.find(sequence)
        sequence.page_ids = tuple(self.pool.take(KvOwner(sequence.sequence_id), num_pages, found))
        self._start_behind(sequence, len(found))

    def catch_up(self, sequence: Sequence) -> None:
        """Let a sequence that has computed nothing yet start behind what others have computed since it came."""
        first, found = sequence.num_computed // self._kv.page_size, self.find(sequence)
        if not found:
            return
        owner = KvOwner(sequence.sequence_id)
        for place, page in enumerate(found, first):
            self.pool.exchange(owner, place, page)
        sequence.page_ids = self.pool.pages_of(owner)
        self._start_behind(sequence, first + len(found))

    def publish(self, sequences: Iterable[Sequence]) -> None:
        """Let the pages that these have completed by now be found."""
        fresh: dict[int, bytes] = {}
        for sequence in sequences:
            num_complete = sequence.num_computed // self._kv.page_size
            if sequence.page_keys is None or num_complete == sequence.num_published:
                continue
            for number in range(sequence.num_published, num_complete):
                key = sequence.page_keys[number]
                if key not in self._page_of:
                    fresh[sequence.page_ids[number]] = key
            sequence.num_published = num_complete
        if fresh:
            for (page, key), is_finite in zip(fresh.items(), self._kv.are_finite([*fresh]), strict=True):
                if is_finite:
                    self._add(key, page)

    def withdraw(self, sequence: Sequence) -> None:
        """Let none of the sequence's pages be found any more: something is wrong with it."""
        for page in sequence.page_ids[: sequence.num_published]:
            key = self._key_of.pop(page, None)
            if key is not None:
                del self._page_of[key]
                self.pool.drop(page)

    def check(self) -> None:
        """Assert that keys and pages match, and the pool's own invariants. O(pages)."""
        assert self._page_of == {key: page for page, key in self._key_of.items()}, "keys and pages differ"
        assert self._key_of.keys() == self.pool.kept_pages(), "the pool keeps other pages than can be found"
        self.pool.check()

    def _start_behind(self, sequence: Sequence, num_pages: int) -> None:
        sequence.num_published = num_pages
        sequence.num_reused = sequence.num_computed = num_pages * self._kv.page_size

    def _add(self, key: bytes, page: int) -> None:
        # Two sequences may have computed the same page in one step: the first stands.
        if key not in self._page_of:
            self._page_of[key], self._key_of[page] = page, key
            self.pool.keep(page)

    def _on_reclaimed(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
