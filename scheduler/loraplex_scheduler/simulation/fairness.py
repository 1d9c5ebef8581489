"""How even the service was: the gap of VTC (arXiv 2401.00588) and Jain's index."""

import itertools

import numpy as np
import numpy.typing as npt

from loraplex_scheduler.simulation.service_meter import OUTPUT_WEIGHT, PROMPT_WEIGHT

Floats = npt.NDArray[np.float64]


def max_service_gap(services: Floats, is_backlogged: npt.NDArray[np.bool_]) -> float:
    """The most that the services of two tenants have come to differ while both were backlogged without a pause.

    Args:
        services: [samples, tenants], cumulative.
        is_backlogged: [samples, tenants].
    """
    pairs = itertools.combinations(range(services.shape[1]), 2)
    return max((_pair_gap(services, is_backlogged, one, other) for one, other in pairs), default=0.0)


def _pair_gap(services: Floats, is_backlogged: npt.NDArray[np.bool_], one: int, other: int) -> float:
    both = is_backlogged[:, one] & is_backlogged[:, other]
    edges = np.flatnonzero(np.diff(both.astype(np.int8), prepend=0, append=0))
    difference = services[:, one] - services[:, other]
    spans = zip(edges[::2], edges[1::2], strict=True)
    return max((float(np.ptp(difference[start:end])) for start, end in spans), default=0.0)


def service_gap_bound(*, max_prompt_tokens: int, max_batch_tokens: int) -> float:
    """VTC's theorem: 2 max(w_p L_in, w_q M), with M the tokens that a batch can hold."""
    return 2.0 * max(PROMPT_WEIGHT * max_prompt_tokens, OUTPUT_WEIGHT * max_batch_tokens)


def fair_shares(demands: Floats, total: float) -> Floats:
    """Max-min: nobody gets more than asked for, and what is left over is split evenly."""
    shares = np.zeros_like(demands)
    left = min(total, float(demands.sum()))
    for rank, index in enumerate(np.argsort(demands, kind="stable")):
        shares[index] = min(demands[index], left / (len(demands) - rank))
        left -= shares[index]
    return shares


def jain_index(values: Floats) -> float:
    """1 if all are equal, 1/n if one has everything."""
    squares = float((values**2).sum())
    return 1.0 if squares == 0.0 else float(values.sum()) ** 2 / (len(values) * squares)


def jain_of_shares(services: Floats, demands: Floats) -> float:
    """Jain's index of what each got over its max-min fair share of what all got."""
    shares = fair_shares(demands, float(services.sum()))
    asked = shares > 0
    return jain_index(services[asked] / shares[asked])
