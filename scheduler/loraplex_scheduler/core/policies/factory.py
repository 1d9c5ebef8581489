"""Policies by name."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.policies.fcfs import FCFS
from loraplex_scheduler.core.policies.slora import SLORA
from loraplex_scheduler.core.policies.vllm_skip import VLLM_SKIP
from loraplex_scheduler.core.policies.weighted_fair import WeightedFair
from loraplex_scheduler.core.policy import Policy

_MAKERS: Final[dict[str, Callable[[CoreConfig], Policy]]] = {
    "fcfs": lambda config: FCFS,
    "slora": lambda config: SLORA,
    "vllm-skip": lambda config: VLLM_SKIP,
    "loraplex": WeightedFair,
}
POLICY_NAMES: Final = tuple(_MAKERS)


def make_policy(name: str, config: CoreConfig) -> Policy:
    """What the service counters hold is the core's: a policy has no history.

    Raises:
        ValueError: no policy has this name.
    """
    if name not in _MAKERS:
        raise ValueError(f"policy={name!r} must be one of {', '.join(POLICY_NAMES)}")
    return _MAKERS[name](config)
