"""When a request could have its first token: learnt from what admissions, loads and prefills took lately."""

import math
from typing import Final

from loraplex_scheduler.core.config import SECOND_NS

_MEMORY_NS: Final = 10 * SECOND_NS
"""After this much busy time an observation counts 1/e."""


class DecayingRatio:
    """A ratio of sums in which the past fades: cost for each unit of amount."""

    def __init__(self, memory: float) -> None:
        self._memory: Final = memory
        self._cost = 0.0
        self._amount = 0.0

    def learn(self, cost: float, amount: float) -> None:
        """The memory is measured in units of cost."""
        kept = math.exp(-cost / self._memory)
        self._cost = self._cost * kept + cost
        self._amount = self._amount * kept + amount

    @property
    def value(self) -> float | None:
        """None until something was learnt."""
        return self._cost / self._amount if self._amount else None


class Estimator:
    """Rates of the whole cluster."""

    def __init__(self) -> None:
        self._admission_ns: Final = DecayingRatio(_MEMORY_NS)
        self._prefill_ns: Final = DecayingRatio(_MEMORY_NS)
        self._load_ns: Final = DecayingRatio(_MEMORY_NS)
        self._last_admission_ns: int | None = None

    def admitted(self, *, is_backlogged: bool, now_ns: int) -> None:
        """An admission. Time in which nobody waited says nothing about how fast a queue moves.

        Args:
            is_backlogged: whether others wait on.
        """
        if self._last_admission_ns is not None:
            self._admission_ns.learn(now_ns - self._last_admission_ns, 1)
        self._last_admission_ns = now_ns if is_backlogged else None

    def prefilled(self, num_tokens: int, duration_ns: int) -> None:
        """From an admission to its first token."""
        self._prefill_ns.learn(duration_ns, num_tokens)

    def loaded(self, num_pages: int, duration_ns: int) -> None:
        self._load_ns.learn(duration_ns, num_pages)

    def queue_ns(self, num_ahead: int) -> float:
        """Until so many others have been admitted."""
        return num_ahead * (self._admission_ns.value or 0.0)

    def prefill_ns(self, num_tokens: int) -> float:
        return num_tokens * (self._prefill_ns.value or 0.0)

    def load_ns(self, num_pages: int) -> float:
        return num_pages * (self._load_ns.value or 0.0)
