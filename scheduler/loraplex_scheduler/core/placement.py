"""Which workers should hold a lane's adapters: where they are, then by rendezvous hashing, on as many as needed."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.prefix_affinity import PrefixAffinity
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.seed import mix, stable_hash
from loraplex_scheduler.core.worker import Worker

CLEARLY: Final = 0.25
"""How much less loaded a worker must be, of 1, to be preferred to the one that hashing chooses."""
_MAX_REMEMBERED: Final = 16_384
"""Adapters whose number of replicas is above one; past it the first ones are forgotten."""


@dataclasses.dataclass(slots=True)
class _Replicas:
    number: int
    grown_ns: int


class Placement:
    """Knows the number of replicas of each set of adapters, and where the next one goes."""

    def __init__(self, config: CoreConfig, workers: Mapping[str, Worker], affinity: PrefixAffinity) -> None:
        self._config: Final = config
        self._workers: Final = workers
        self._affinity: Final = affinity
        self._replicas: dict[tuple[str, ...], _Replicas] = {}

    def num_replicas(self, digests: tuple[str, ...]) -> int:
        replicas = self._replicas.get(digests)
        return 1 if replicas is None else replicas.number

    def next_homes(self, digests: tuple[str, ...], candidates: Iterable[Worker], number: int) -> list[Worker]:
        """Where to load next: in the order of hashing, those that are clearly more loaded than another last."""
        ordered = self.order(digests, candidates)
        if not ordered:
            return []
        limit = min(worker.load for worker in ordered) + CLEARLY
        ordered.sort(key=lambda worker: worker.load > limit)
        return ordered[:number]

    def order(self, digests: tuple[str, ...], candidates: Iterable[Worker]) -> list[Worker]:
        """Rendezvous hashing: a worker that comes or goes moves only the adapters that hash to it."""
        ranked = list(candidates)
        if len(ranked) > 1:
            key = stable_hash(*digests)
            ranked.sort(key=lambda worker: (-mix(key ^ worker.hash), worker.worker_id))
        return ranked

    def grow(self, digests: tuple[str, ...], homes: Iterable[Worker], others: Iterable[Worker], *, now_ns: int) -> bool:
        """Its first sequence has waited for long. Whether it gets one more worker."""
        others, homes = list(others), list(homes)
        number = self.num_replicas(digests)
        if not others or number >= self._config.max_replicas or len(homes) < number:
            return False
        busiest = min((worker.load for worker in homes), default=1.0)
        if min(worker.load for worker in others) > busiest - CLEARLY:
            return False
        if len(self._replicas) >= _MAX_REMEMBERED:
            del self._replicas[next(iter(self._replicas))]
        self._replicas[digests] = _Replicas(number + 1, now_ns)
        return True

    def shrink(self, digests: tuple[str, ...], *, now_ns: int) -> None:
        """Nothing waits for it: one replica less, if the last growth is long ago."""
        replicas = self._replicas.get(digests)
        if replicas is None or now_ns - replicas.grown_ns < self._config.replica_cooldown_ns:
            return
        replicas.number, replicas.grown_ns = replicas.number - 1, now_ns
        if replicas.number <= 1:
            del self._replicas[digests]

    def better_elsewhere(self, sequence: Sequence, worker: Worker, others: Iterable[Worker]) -> bool:
        """Whether one of ``others``, about as loaded and with room, has more of the prompt in its prefix cache."""
        able = [other for other in others if other is not worker and _can_take(sequence, other)]
        if not able:
            return False
        here = self._affinity.num_cached_tokens(sequence, worker.worker_id)
        return any(
            other.load <= worker.load + CLEARLY
            and self._affinity.num_cached_tokens(sequence, other.worker_id) >= here + other.info.page_size
            for other in able
        )


def _can_take(sequence: Sequence, worker: Worker) -> bool:
    """As far as can be told at a glance."""
    if not worker.has_slot or worker.is_prefill_bound or not worker.residency.has_all(sequence.request.digests):
        return False
    return worker.worker_id in sequence.request.places and worker.ledger.free >= worker.kv_pages_for(sequence, 1)
