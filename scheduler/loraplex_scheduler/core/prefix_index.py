"""Which prefixes each worker probably holds: a guess for placement and admission. Only a worker knows for sure."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Final


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """Of one worker. The keys are in the order of their last use, longest ago first."""

    page_size: int
    max_keys: int
    keys: collections.OrderedDict[bytes, None] = dataclasses.field(default_factory=collections.OrderedDict)


class PrefixIndex:
    """Keys of pages by worker, the most recently computed ones, as many as the worker has pages.

    Keys come from ``loraplex_contract.prefix_key.page_keys`` with the worker's page size. The worker evicts by its own
    order and need, so that a key here is likely, not certain: nothing but speed may depend on it.
    """

    def __init__(self) -> None:
        self._workers: Final[dict[str, _Held]] = {}

    def add_worker(self, worker_id: str, *, page_size: int, num_pages: int) -> None:
        """A worker registered; what was known of an earlier registration is forgotten.

        Args:
            page_size: tokens in a page.
            num_pages: of its pool, the most that it can hold.
        """
        assert page_size > 0, page_size
        assert num_pages > 0, num_pages
        self._workers[worker_id] = _Held(page_size=page_size, max_keys=num_pages)

    def forget_worker(self, worker_id: str) -> None:
        """It is gone. An unknown one is ignored."""
        self._workers.pop(worker_id, None)

    def note_computed(self, worker_id: str, keys: Iterable[bytes]) -> None:
        """The worker has, or is about to have, these pages; first page first. O(keys); an unknown worker is ignored."""
        held = self._workers.get(worker_id)
        if held is None:
            return
        # The last page first, so that it is the first to be forgotten: it is of no use without those before it.
        for key in reversed(list(keys)):
            held.keys[key] = None
            held.keys.move_to_end(key)
        while len(held.keys) > held.max_keys:
            held.keys.popitem(last=False)

    def expected_tokens(self, worker_id: str, keys: Iterable[bytes]) -> int:
        """How many leading tokens the worker would not have to compute. Changes nothing.

        Reads ``keys``, first page first, to the first that the worker lacks: a lazy iterable is hashed no further.
        """
        held = self._workers.get(worker_id)
        if held is None:
            return 0
        num_pages = 0
        for key in keys:
            if key not in held.keys:
                break
            num_pages += 1
        return num_pages * held.page_size

    def num_keys(self, worker_id: str) -> int:
        held = self._workers.get(worker_id)
        return 0 if held is None else len(held.keys)
