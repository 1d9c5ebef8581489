"""What the core knows of one registration of a worker."""

import dataclasses
from collections.abc import Iterable
from typing import Final

from loraplex_scheduler.core.event import StepReported, WorkerInfo
from loraplex_scheduler.core.ledger import Ledger, num_pages_for
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.residency import Residency, Tier


@dataclasses.dataclass(slots=True, kw_only=True)
class WorkerCounters:
    """Since the worker connected."""

    num_steps: int = 0
    num_mixed_steps: int = 0
    """Steps with rows of two adapters, or of an adapter and the base model."""
    max_adapters_in_step: int = 0
    num_output_tokens: int = 0
    num_loads: int = 0
    num_evictions: int = 0
    num_preemptions: int = 0


class Worker:
    """Pages, adapters and sequences of one worker, as the commands to it imply."""

    def __init__(self, info: WorkerInfo) -> None:
        self.info: Final = info
        self.ledger: Final = Ledger(info.num_pages)
        self.residency: Final = Residency()
        self.sequences: Final[dict[int, Sequence]] = {}
        """Admitted ones, by id."""
        self.starving: Final[set[int]] = set()
        """Ids of those whose grant could not be extended."""
        self.counters: Final = WorkerCounters()

    @property
    def worker_id(self) -> str:
        return self.info.worker_id

    def __repr__(self) -> str:
        return f"Worker({self.worker_id}, epoch {self.info.epoch})"

    def kv_pages_for(self, sequence: Sequence, grant_tokens: int) -> int:
        return num_pages_for(len(sequence.request.prompt_ids) + grant_tokens, self.info.page_size)

    def adapter_pages_for(self, num_parameters: int) -> int:
        return max(1, -(-num_parameters * self.info.adapter_parameter_bytes // self.info.page_bytes))

    def adapters_with(self, digests: Iterable[str]) -> int:
        """Distinct adapters of the admitted sequences, if one on ``digests`` joined them."""
        new = sum(1 for digest in digests if not self._is_in_use(digest))
        return self.residency.num_in_use + new

    def pages_on_the_way(self) -> int:
        """Pages that become free when the evictions that were asked for are done."""
        return sum(self.ledger.adapter_pages(r.digest) for r in self.residency if r.tier is Tier.EVICTING)

    def count_step(self, report: StepReported) -> None:
        counters, num_adapters = self.counters, len(report.adapter_digests)
        counters.num_steps += 1
        counters.num_mixed_steps += num_adapters + report.has_base_rows > 1
        counters.max_adapters_in_step = max(counters.max_adapters_in_step, num_adapters)

    def _is_in_use(self, digest: str) -> bool:
        resident = self.residency.get(digest)
        return resident is not None and resident.num_users > 0

    def check(self) -> None:
        """Assert that ledger, residency and sequences tell the same story."""
        self.ledger.check()
        users: dict[str, int] = {}
        for sequence_id, sequence in self.sequences.items():
            assert (sequence.sequence_id, sequence.worker_id) == (sequence_id, self.worker_id), sequence
            pages = self.kv_pages_for(sequence, sequence.grant_tokens)
            assert self.ledger.kv_pages(sequence_id) == pages, f"{sequence} has not the pages of its grant"
            assert sequence.num_output <= sequence.grant_tokens <= sequence.max_tokens, sequence
            for digest in sequence.request.digests:
                users[digest] = users.get(digest, 0) + 1
        self._check_adapters(users)
        assert self.ledger.counts().kv == sum(self.ledger.kv_pages(id) for id in self.sequences)
        assert len(self.sequences) <= self.info.max_sequences
        assert self.starving <= self.sequences.keys()

    def _check_adapters(self, users: dict[str, int]) -> None:
        self.residency.check()
        charged = 0
        for resident in self.residency:
            pages = self.ledger.adapter_pages(resident.digest)
            charged += pages
            assert (pages > 0) == (resident.tier is not Tier.FAILED), f"pages of {resident}"
            assert resident.num_users == users.pop(resident.digest, 0), f"users of {resident}"
            assert resident.num_users == 0 or resident.tier is Tier.DEVICE, f"in use: {resident}"
        assert not users, f"admitted without its adapter: {users}"
        assert charged == self.ledger.counts().adapter
