"""What one sequence's sampling depends on: its parameters, its own tokens, and nothing of its batch."""

import torch
from torch import Tensor

from loraplex_worker.engine.command import Sampling, Stop
from loraplex_worker.engine.random_stream import uniform
from loraplex_worker.engine.token_history import TokenHistory


class SamplingState:
    """Owned by a sequence. ``observe`` each output token; the sampler reads the rest."""

    def __init__(
        self, sampling: Sampling, stop: Stop, *, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]
    ) -> None:
        self.sampling = sampling
        self.num_output = len(output_ids)
        self._history = _history(sampling, prompt_ids, output_ids)
        self._stop_ids = stop.stop_token_ids
        self._num_masked = stop.min_tokens if stop.stop_token_ids else 0
        edits = sampling.logit_bias or sampling.allowed_token_ids or sampling.banned_token_ids
        self._always_adjusts = bool(edits) or self._history is not None
        self._is_greedy = sampling.temperature == 0.0

    @property
    def adjusts(self) -> bool:
        """Whether ``adjust`` changes anything for the next token."""
        return self._always_adjusts or self.num_output < self._num_masked

    @property
    def is_plain(self) -> bool:
        """Whether the next token is simply the highest logit."""
        return self._is_greedy and not self._always_adjusts and self.num_output >= self._num_masked

    def observe(self, token_id: int) -> None:
        """Count one more output token."""
        self.num_output += 1
        if self._history is not None:
            self._history.add_output(token_id)

    def uniform(self) -> float:
        """The random number of the next token."""
        return uniform(self.sampling.seed, self.num_output)

    def adjust(self, logits: Tensor) -> None:
        """Change one row of logits [V] in place: penalties, then bias, then masks."""
        if self._history is not None:
            _penalise(logits, self._history, self.sampling)
        for_bias = self.sampling.logit_bias
        if for_bias:
            ids = _ids([token_id for token_id, _ in for_bias], logits)
            # index_add_: an id may be listed twice.
            logits.index_add_(0, ids, logits.new_tensor([bias for _, bias in for_bias]))
        self._mask(logits)

    def _mask(self, logits: Tensor) -> None:
        if self.sampling.allowed_token_ids:
            ids = _ids(self.sampling.allowed_token_ids, logits)
            kept = logits.index_select(0, ids)
            logits.fill_(-torch.inf).index_copy_(0, ids, kept)
        if self.sampling.banned_token_ids:
            logits.index_fill_(0, _ids(self.sampling.banned_token_ids, logits), -torch.inf)
        if self.num_output < self._num_masked:
            logits.index_fill_(0, _ids(self._stop_ids, logits), -torch.inf)


def _ids(token_ids: tuple[int, ...] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=like.device)


def _history(sampling: Sampling, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]) -> TokenHistory | None:
    if sampling.repetition_penalty != 1.0:
        return TokenHistory(prompt_ids, output_ids)
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        return TokenHistory((), output_ids)
    return None


def _penalise(logits: Tensor, history: TokenHistory, sampling: Sampling) -> None:
    ids, counts = history.tensors(logits.device)
    seen = logits.index_select(0, ids)
    penalty = sampling.repetition_penalty
    if penalty != 1.0:
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    seen = seen - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    logits.index_copy_(0, ids, seen)
