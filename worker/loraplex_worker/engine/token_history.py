"""Which tokens a sequence holds, and how often: what the penalties need."""

import numpy as np
import torch
from torch import Tensor

_MIN_CAPACITY = 64


class TokenHistory:
    """Distinct tokens of a sequence with their number in the output. One step costs O(1), an adjustment O(distinct)."""

    def __init__(self, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.empty(_MIN_CAPACITY, dtype=np.int64)
        self._counts = np.zeros(_MIN_CAPACITY, dtype=np.float32)
        for token_id in dict.fromkeys(prompt_ids):
            self._place(token_id)
        for token_id in output_ids:
            self.add_output(token_id)

    def add_output(self, token_id: int) -> None:
        """Note one more output token."""
        place = self._index.get(token_id)
        if place is None:
            place = self._place(token_id)
        self._counts[place] += 1.0

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Distinct ids [n] int64, and the output's count of each [n] float32: 0 for tokens of the prompt alone."""
        size = len(self._index)
        ids, counts = torch.from_numpy(self._ids[:size]), torch.from_numpy(self._counts[:size])
        return ids.to(device), counts.to(device)

    def _place(self, token_id: int) -> int:
        place = len(self._index)
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._index[token_id] = place
        self._ids[place] = token_id
        return place
