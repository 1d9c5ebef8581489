"""Policies by name."""

from collections.abc import Callable
from typing import Final

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.policy import FirstComeFirstServed, Policy


def _first_come(config: CoreConfig) -> Policy:
    return FirstComeFirstServed(config.max_overtake_ns)


_MAKERS: Final[dict[str, Callable[[CoreConfig], Policy]]] = {
    "fcfs": _first_come,
    "slora": _first_come,
    "vllm-skip": _first_come,
    "loraplex": _first_come,
}
POLICY_NAMES: Final = tuple(_MAKERS)


def make_policy(name: str, config: CoreConfig) -> Policy:
    """A new policy with no history.

    Raises:
        ValueError: no policy has this name.
    """
    if name not in _MAKERS:
        raise ValueError(f"policy={name!r} must be one of {', '.join(POLICY_NAMES)}")
    return _MAKERS[name](config)
