"""What virtual clients ask for, and when."""

import dataclasses
from collections.abc import Mapping

from loraplex_scheduler.simulation.preset import Preset

SECOND_NS = 1_000_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request. Its output has exactly ``num_output_tokens``: no stop token is ever produced."""

    time_ns: int
    tenant: str
    adapter: str | None
    """None = the base model."""
    num_prompt_tokens: int
    num_output_tokens: int
    priority: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Arrivals on a machine. All of it is fixed before the first event: the same seed gives the same run."""

    name: str
    title: str
    preset: Preset
    arrivals: tuple[Arrival, ...]
    """In the order of their times."""
    ranks: Mapping[str, int]
    """Of each adapter; every tenant that uses one registers it."""
    num_workers: int = 1
    slo_ns: int = 6 * SECOND_NS
    """To the first token: what attainment and satisfaction are measured by."""
    sends_deadline: bool = False
    """Whether requests carry the SLO as their first-token deadline."""
    horizon_ns: int | None = None
    """What is not over by then is cancelled and counts as unfinished. None = until everything is over."""
    watched_tenants: frozenset[str] | None = None
    """Whose latencies count. None = everybody's."""
    max_adapters_per_step: int = 0

    @property
    def tenants(self) -> tuple[str, ...]:
        return tuple(sorted({arrival.tenant for arrival in self.arrivals}))

    @property
    def window_ns(self) -> int:
        """The time in which requests come: fairness is measured in it."""
        return self.arrivals[-1].time_ns if self.horizon_ns is None else self.horizon_ns

    def registrations(self) -> list[tuple[str, str]]:
        """(tenant, adapter) pairs in use."""
        return sorted({(a.tenant, a.adapter) for a in self.arrivals if a.adapter is not None})
