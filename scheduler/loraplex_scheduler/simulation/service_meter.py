"""Service that each tenant has had so far: 1 for a prompt token, counted at admission, 2 for an output token (VTC)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

PROMPT_WEIGHT: Final = 1
OUTPUT_WEIGHT: Final = 2


class ServiceMeter:
    """Running sums, and samples of them."""

    def __init__(self, tenants: Sequence[str]) -> None:
        self.tenants: Final = tuple(tenants)
        self._index: Final = {tenant: index for index, tenant in enumerate(tenants)}
        self._service = [0] * len(tenants)
        self._num_waiting = [0] * len(tenants)
        self._demand = [0] * len(tenants)
        self._services: list[list[int]] = []
        self._is_backlogged: list[list[bool]] = []

    def arrived(self, tenant: str, *, num_prompt: int, num_output: int) -> None:
        index = self._index[tenant]
        self._num_waiting[index] += 1
        self._demand[index] += PROMPT_WEIGHT * num_prompt + OUTPUT_WEIGHT * num_output

    def left_queue(self, tenant: str) -> None:
        """Admitted, or ended before that."""
        self._num_waiting[self._index[tenant]] -= 1

    def served(self, tenant: str, amount: int) -> None:
        self._service[self._index[tenant]] += amount

    @property
    def num_waiting(self) -> int:
        return sum(self._num_waiting)

    def sample(self) -> None:
        self._services.append(list(self._service))
        self._is_backlogged.append([number > 0 for number in self._num_waiting])

    def demand(self) -> npt.NDArray[np.float64]:
        """[tenants], of all that has arrived."""
        return np.array(self._demand, dtype=np.float64)

    def services(self) -> npt.NDArray[np.float64]:
        """[samples, tenants], cumulative."""
        return np.array(self._services, dtype=np.float64).reshape(-1, len(self.tenants))

    def is_backlogged(self) -> npt.NDArray[np.bool_]:
        """[samples, tenants]."""
        return np.array(self._is_backlogged, dtype=np.bool_).reshape(-1, len(self.tenants))
