"""What the core knows of one registration of a worker."""

import dataclasses
from collections.abc import Container, Iterable
from typing import Final

from loraplex_scheduler.core.event import StepReported, WorkerInfo
from loraplex_scheduler.core.ledger import Ledger, num_pages_for
from loraplex_scheduler.core.prefill_backlog import PrefillBacklog
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.residency import Residency, Standby, Tier
from loraplex_scheduler.core.seed import stable_hash


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

    def __init__(self, info: WorkerInfo, waited: Container[str] = ()) -> None:
        self.info: Final = info
        self.hash: Final = stable_hash(info.worker_id)
        self.ledger: Final = Ledger(info.num_pages)
        self.residency: Final = Residency(waited)
        self.sequences: Final[dict[int, Sequence]] = {}
        """Admitted ones, by id."""
        self.starving: Final[set[int]] = set()
        """Ids of those whose grant could not be extended."""
        self.drain: Sequence | None = None
        """One that has been overtaken for too long: its room is kept from those of its class and worse."""
        self.closing: Final[set[str]] = set()
        """Adapters on which nothing is admitted until the drain is over."""
        self.num_refusals = 0
        self.needs_look = True
        """Whether something may be admitted or loaded that could not be before."""
        self.backlog: Final = PrefillBacklog()
        self.max_step_tokens = info.max_step_tokens
        self.counters: Final = WorkerCounters()
        self._classes: dict[int, int] = {}
        """Admitted sequences by priority class."""

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
        return self.residency.num_pages(Standby.MOVING_OUT)

    @property
    def has_slot(self) -> bool:
        return len(self.sequences) < self.info.max_sequences

    @property
    def is_prefill_bound(self) -> bool:
        """Whether its next step is full: one admitted now would wait there, where nobody with more right passes it."""
        num_decode_rows = len(self.sequences) - len(self.backlog)
        num_rows_a_step = max(1, self.max_step_tokens // 8, self.max_step_tokens - num_decode_rows)
        return self.backlog.num_rows >= num_rows_a_step

    @property
    def load(self) -> float:
        """0 to 1: the scarcer of slots and of pages in use, KV and adapters, so that large ranks weigh more."""
        residency = self.residency
        unused = self.ledger.free + residency.num_pages(Standby.IDLE) + residency.num_pages(Standby.WAITED_FOR)
        return max(len(self.sequences) / self.info.max_sequences, 1 - unused / self.info.num_pages)

    @property
    def worst_class(self) -> int | None:
        """Of the admitted sequences; None if there are none."""
        return max(self._classes, default=None)

    def put(self, sequence: Sequence, priority: int) -> None:
        self.sequences[sequence.sequence_id] = sequence
        self.backlog.add(sequence.sequence_id, len(sequence.request.prompt_ids) + sequence.num_output)
        self._classes[priority] = self._classes.get(priority, 0) + 1

    def take(self, sequence: Sequence, priority: int) -> None:
        del self.sequences[sequence.sequence_id]
        self.starving.discard(sequence.sequence_id)
        self.backlog.settle(sequence.sequence_id)
        self._classes[priority] -= 1
        if not self._classes[priority]:
            del self._classes[priority]

    def count_step(self, report: StepReported) -> None:
        counters, num_adapters = self.counters, len(report.adapter_digests)
        counters.num_steps += 1
        self.backlog.compute(
            report.num_rows - report.num_decode_rows + sum(hit.num_tokens for hit in report.prefix_hits)
        )
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
        assert sum(self._classes.values()) == len(self.sequences), "classes of the admitted sequences"
        assert self.drain is None or self.drain.home_id == self.worker_id, f"{self.drain} has its home elsewhere"
        assert self.ledger.counts().kv == sum(self.ledger.kv_pages(id) for id in self.sequences)
        assert len(self.sequences) <= self.info.max_sequences
        assert self.starving <= self.sequences.keys()
        num_fresh = sum(sequence.is_fresh for sequence in self.sequences.values())
        assert len(self.backlog) == num_fresh, f"{len(self.backlog)} without a token, not {num_fresh}"
        assert self.backlog.num_rows >= 0

    def _check_adapters(self, users: dict[str, int]) -> None:
        self.residency.check()
        charged = 0
        for resident in self.residency:
            pages = self.ledger.adapter_pages(resident.digest)
            charged += pages
            assert (pages > 0) == (resident.tier is not Tier.FAILED), f"pages of {resident}"
            assert pages == resident.num_pages, f"pages of {resident}"
            assert resident.num_users == users.pop(resident.digest, 0), f"users of {resident}"
            assert resident.num_users == 0 or resident.tier is Tier.DEVICE, f"in use: {resident}"
        assert not users, f"admitted without its adapter: {users}"
        assert charged == self.ledger.counts().adapter
