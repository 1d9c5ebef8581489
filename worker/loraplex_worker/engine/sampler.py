"""From logits to the next token of each sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_worker.engine.draw import draw
from loraplex_worker.engine.sampling_state import SamplingState


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
    """Choose the next token of each row. Changes neither argument.

    The order of work is: penalties, bias, masks; then for greedy rows the highest logit, ties to the lowest id, and for
    the others temperature, top_k, top_p, min_p and a draw (see ``draw``). A row's result does not depend on the others.

    Args:
        logits: [N, V] float32.
        states: N.

    Returns:
        N token ids; None where a row's logits are not all finite or its masks leave no token.
    """
    # A sum is finite exactly where every term is: one pass, at a fraction of the cost of testing each element.
    finite: list[bool] = logits.sum(dim=1).isfinite().tolist()
    tokens: list[int | None] = [*_argmax(logits)]
    special = [row for row, state in enumerate(states) if finite[row] and not state.is_plain]
    if special:
        chosen = _sample_special(logits[special], [states[row] for row in special])
        for row, token in zip(special, chosen, strict=True):
            tokens[row] = token
    if not all(finite):
        tokens = [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]
    return tokens


def _sample_special(logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
    """As ``sample``, for finite rows with parameters of their own; overwrites ``logits``."""
    for row, state in enumerate(states):
        if state.adjusts:
            state.adjust(logits[row])
    tokens: list[int | None] = [None] * len(states)
    greedy = [row for row, state in enumerate(states) if state.sampling.temperature == 0.0]
    drawn = [row for row, state in enumerate(states) if state.sampling.temperature != 0.0]
    if greedy:
        _fill(tokens, greedy, _argmax_allowed(logits[greedy]))
    if drawn:
        rows = logits if len(drawn) == len(states) else logits[drawn]
        samplings = [states[row].sampling for row in drawn]
        _fill(tokens, drawn, draw(rows, samplings, [states[row].uniform() for row in drawn]))
    return tokens


def _fill(tokens: list[int | None], rows: list[int], chosen: Sequence[int | None]) -> None:
    for row, token in zip(rows, chosen, strict=True):
        tokens[row] = token


def _argmax(logits: Tensor) -> list[int]:
    """First index of each row's highest value."""
    if logits.device.type == "cpu":
        # On 32 x 32000 float32: numpy 0.07 ms, torch 0.86 ms (one core, torch 2.13, numpy 2.4).
        ids: list[int] = logits.numpy().argmax(axis=1).tolist()
        return ids
    ids = logits.argmax(dim=1).tolist()
    return ids


def _argmax_allowed(logits: Tensor) -> list[int | None]:
    has_token: list[bool] = (logits.amax(dim=1) > -torch.inf).tolist()
    return [token if allowed else None for token, allowed in zip(_argmax(logits), has_token, strict=True)]
