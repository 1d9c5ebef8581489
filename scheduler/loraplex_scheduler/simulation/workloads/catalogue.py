"""Every workload by name."""

from collections.abc import Callable
from typing import Final, TypeAlias

from loraplex_scheduler.simulation.presets import A10G_7B, A100_7B, A100_13B, H100
from loraplex_scheduler.simulation.workload import Workload
from loraplex_scheduler.simulation.workloads.adapter_scale import cpu_scale_workload, h100_scale_workload
from loraplex_scheduler.simulation.workloads.flash_crowd import flash_crowd_workload
from loraplex_scheduler.simulation.workloads.flood import flood_workload
from loraplex_scheduler.simulation.workloads.oversubscription import FACTOR, oversubscription_workload
from loraplex_scheduler.simulation.workloads.punica import Pattern, punica_arrivals
from loraplex_scheduler.simulation.workloads.real_trace import NUM_ADAPTERS, real_trace_arrivals
from loraplex_scheduler.simulation.workloads.slora_synthetic import (
    RANKS_S2,
    RANKS_S4,
    SEED,
    cycled_ranks,
    slora_arrivals,
)
from loraplex_scheduler.simulation.workloads.vtc import OVERLOAD, OVERLOAD_MULTI, vtc_workload

Builder: TypeAlias = Callable[[int], Workload]
"""From a seed. Workloads with a published seed change it by the difference to ours."""

PUNICA_MAX_TOKENS: Final = 250
"""Prompt and output together: with it a thousand requests have some 100,000 output tokens, as the paper's."""


def w1(seed: int) -> Workload:
    return Workload(
        name="w1-slora",
        title="S-LoRA synthetic S2: 1,000 adapters, 10/s, cv 1, A100",
        preset=A100_7B,
        arrivals=slora_arrivals(num_adapters=1000, rate=10, duration_s=120, seed=seed),
        ranks=cycled_ranks(1000, RANKS_S2),
    )


def w1_abort(seed: int) -> Workload:
    """S-LoRA's abort experiment: S4, 6 requests/s where 4 can be served, 400 adapters, bursts of cv 8."""
    return Workload(
        name="w1-abort",
        title="S-LoRA abort experiment S4: 400 adapters, 6/s, cv 8, A100, 13B",
        preset=A100_13B,
        arrivals=slora_arrivals(num_adapters=400, rate=6, duration_s=300, cv=8, seed=seed),
        ranks=cycled_ranks(400, RANKS_S4),
        sends_deadline=True,
    )


def w2(seed: int) -> Workload:
    return Workload(
        name="w2-like",
        title="In the shape of S-LoRA's real trace: 26 adapters, 3/s, A10G",
        preset=A10G_7B,
        arrivals=real_trace_arrivals(rate=3, duration_s=300, seed=seed),
        ranks=cycled_ranks(NUM_ADAPTERS, RANKS_S2),
    )


def w3(pattern: Pattern) -> Builder:
    def build(seed: int) -> Workload:
        arrivals, num_adapters = punica_arrivals(pattern, num_requests=1000, max_tokens=PUNICA_MAX_TOKENS)
        return Workload(
            name=f"w3-{pattern.value}",
            title=f"Punica {pattern.value}: 1,000 requests at once, batch 32, H100",
            preset=H100.with_slots(32),
            arrivals=arrivals,
            ranks=cycled_ranks(num_adapters, (16,)),
        )

    return build


_BUILDERS: Final[dict[str, Builder]] = {
    "w1-slora": w1,
    "w1-abort": w1_abort,
    "w2-like": w2,
    **{f"w3-{pattern.value}": w3(pattern) for pattern in Pattern},
    "w5-overload": lambda seed: vtc_workload("w5-overload", "VTC overload: 1.5 and 3 requests/s, A10G", OVERLOAD),
    "w5-multi": lambda seed: vtc_workload("w5-multi", "VTC overload, eight clients, A10G", OVERLOAD_MULTI),
    "flood-without": lambda seed: flood_workload(has_flood=False, seed=seed),
    "flood": lambda seed: flood_workload(has_flood=True, seed=seed),
    "flash-crowd": lambda seed: flash_crowd_workload(seed=seed),
    "oversubscription-1x": lambda seed: oversubscription_workload(factor=1, load=0.7, seed=seed),
    "oversubscription-4x": lambda seed: oversubscription_workload(factor=FACTOR, load=0.7, seed=seed),
    "oversubscription-1x-saturated": lambda seed: oversubscription_workload(factor=1, load=1.5, seed=seed),
    "oversubscription-4x-saturated": lambda seed: oversubscription_workload(factor=FACTOR, load=1.5, seed=seed),
    "scale-cpu-1": lambda seed: cpu_scale_workload(num_adapters=1, seed=seed),
    "scale-cpu-1024": lambda seed: cpu_scale_workload(num_adapters=1024, seed=seed),
    "scale-h100-1": lambda seed: h100_scale_workload(num_adapters=1, seed=seed),
    "scale-h100-1000": lambda seed: h100_scale_workload(num_adapters=1000, seed=seed),
}
WORKLOAD_NAMES: Final = tuple(_BUILDERS)
DEFAULT_SEED: Final = SEED


def make_workload(name: str, seed: int = DEFAULT_SEED) -> Workload:
    """Raises:
    ValueError: no workload has this name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"workload={name!r} must be one of {', '.join(WORKLOAD_NAMES)}")
    return _BUILDERS[name](seed)
