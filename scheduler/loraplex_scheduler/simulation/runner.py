"""From names to a finished run."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.policies import POLICY_NAMES, make_policy
from loraplex_scheduler.simulation.metrics import RunMetrics, measure
from loraplex_scheduler.simulation.simulation import Simulation
from loraplex_scheduler.simulation.workload import Workload

NO_LIMIT: Final = 1_000_000


def core_config(workload: Workload, policy: str) -> CoreConfig:
    """The defaults, but that nobody is refused for the length of the queue: the policies alone are compared."""
    return CoreConfig(
        policy=policy,
        max_queued_requests=NO_LIMIT,
        max_inflight_per_tenant=NO_LIMIT,
        max_adapters_per_step=workload.max_adapters_per_step,
    )


def simulate(
    workload: Workload,
    policy: str,
    *,
    seed: int,
    check_every: int = 0,
    progress: Callable[[float], None] = lambda part: None,
) -> tuple[Simulation, RunMetrics]:
    """Run it to its end.

    Args:
        check_every: turns of the core between checks of all its invariants; 0 = only at the end.

    Raises:
        ValueError: no policy has this name.
    """
    config = core_config(workload, policy)
    simulation = Simulation(workload, config, make_policy(policy, config), check_every=check_every)
    simulation.run(progress)
    return simulation, measure(simulation, policy=policy, seed=seed)


__all__ = ["NO_LIMIT", "POLICY_NAMES", "core_config", "simulate"]
