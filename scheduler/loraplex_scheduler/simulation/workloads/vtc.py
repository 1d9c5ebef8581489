"""The fairness workloads of VTC (arXiv 2401.00588): tenants that ask for more than there is, at an even pace."""

from typing import Final

from loraplex_scheduler.simulation.presets import A10G_7B
from loraplex_scheduler.simulation.workload import SECOND_NS, Workload
from loraplex_scheduler.simulation.workloads.steady import even_arrivals, merged

OVERLOAD: Final = (1.5, 3.0)
OVERLOAD_MULTI: Final = (0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6)
_DURATION_S: Final = 360


def vtc_workload(name: str, title: str, rates: tuple[float, ...]) -> Workload:
    """256 tokens in and out, 360 s, the base model; what is not over at the end of the window is cancelled."""
    streams = (
        even_arrivals(f"client-{index}", rate=rate, duration_s=_DURATION_S, num_prompt=256, num_output=256)
        for index, rate in enumerate(rates)
    )
    return Workload(
        name=name,
        title=title,
        preset=A10G_7B,
        arrivals=merged(streams),
        ranks={},
        horizon_ns=_DURATION_S * SECOND_NS,
    )
