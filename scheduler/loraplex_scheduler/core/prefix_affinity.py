"""Where a prompt's first tokens are probably cached: what breaks ties between workers."""

from typing import Final

from loraplex_contract import prefix_key
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.prefix_index import PrefixIndex
from loraplex_scheduler.core.prefix_namespace import prefix_namespace
from loraplex_scheduler.core.request import Request, Sequence
from loraplex_scheduler.core.worker import Worker

_MAX_PAGES: Final = 256
"""Of a prompt that are looked at: more of them tell nothing new about where it should go."""


class PrefixAffinity:
    """Guesses by what was admitted where. A prompt is hashed once, when it is first asked about, and only where there
    is a choice between workers."""

    def __init__(self, config: CoreConfig) -> None:
        self._config: Final = config
        self._index: Final = PrefixIndex()
        self._page_sizes: Final[dict[str, int]] = {}
        """Of the connected workers."""

    def add_worker(self, worker: Worker) -> None:
        info = worker.info
        self._page_sizes[info.worker_id] = info.page_size
        self._index.add_worker(info.worker_id, page_size=info.page_size, num_pages=info.num_pages)

    def forget_worker(self, worker_id: str) -> None:
        del self._page_sizes[worker_id]
        self._index.forget_worker(worker_id)

    def note_admitted(self, sequence: Sequence, worker: Worker) -> None:
        """The worker is about to compute its prompt."""
        if self._has_choice():
            self._index.note_computed(worker.worker_id, self._keys(sequence.request, worker.info.page_size))

    def num_cached_tokens(self, sequence: Sequence, worker_id: str) -> int:
        if not self._has_choice():
            return 0
        return self._index.expected_tokens(worker_id, self._keys(sequence.request, self._page_sizes[worker_id]))

    def _has_choice(self) -> bool:
        return len(self._page_sizes) > 1 and bool(self._config.prefix_secret)

    def _keys(self, request: Request, page_size: int) -> tuple[bytes, ...]:
        if request.prefix_keys is None or request.prefix_keys[0] != page_size:
            namespace = prefix_namespace(self._config, request.tenant, is_base=not request.digests)
            pairs = [(part.digest, prefix_key.weight_on_wire(part.weight)) for part in request.weights]
            token_ids = request.prompt_ids[: _MAX_PAGES * page_size]
            keys = tuple(prefix_key.page_keys(prefix_key.root_key(namespace, pairs), token_ids, page_size))
            request.prefix_keys = (page_size, keys)
        return request.prefix_keys[1]
