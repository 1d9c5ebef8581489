"""Who has which pages of one worker: free + KV + adapters = pool, always."""

import dataclasses
from typing import Final


def num_pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PageCounts:
    free: int
    kv: int
    adapter: int
    total: int


class Ledger:
    """Counts pages; which ones they are is the worker's business."""

    def __init__(self, num_pages: int) -> None:
        self.total: Final = num_pages
        self.free = num_pages
        self._kv: dict[int, int] = {}
        self._adapters: dict[str, int] = {}

    def kv_pages(self, sequence_id: int) -> int:
        return self._kv.get(sequence_id, 0)

    def adapter_pages(self, digest: str) -> int:
        return self._adapters.get(digest, 0)

    def grow_kv(self, sequence_id: int, num_pages: int) -> None:
        self._take(num_pages)
        self._kv[sequence_id] = self._kv.get(sequence_id, 0) + num_pages

    def release_kv(self, sequence_id: int) -> None:
        self.free += self._kv.pop(sequence_id)

    def charge_adapter(self, digest: str, num_pages: int) -> None:
        assert digest not in self._adapters, f"{digest} is charged already"
        self._take(num_pages)
        self._adapters[digest] = num_pages

    def release_adapter(self, digest: str) -> None:
        self.free += self._adapters.pop(digest)

    def counts(self) -> PageCounts:
        kv, adapter = sum(self._kv.values()), sum(self._adapters.values())
        return PageCounts(free=self.free, kv=kv, adapter=adapter, total=self.total)

    def check(self) -> None:
        counts = self.counts()
        assert counts.free + counts.kv + counts.adapter == counts.total, f"the ledger does not add up: {counts}"
        assert counts.free >= 0, f"pages were given twice: {counts}"

    def _take(self, num_pages: int) -> None:
        assert 0 <= num_pages <= self.free, f"{num_pages} pages wanted, {self.free} are free"
        self.free -= num_pages
