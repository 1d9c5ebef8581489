"""Which Admit commands an engine can carry out at all, whatever its state."""

import math

from loraplex_worker.engine.command import Admit, Sampling, Stop
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason

_MAX_PENALTY = 1e6
_MAX_REPETITION_FACTOR = 1e3
_SEED_LIMIT = 1 << 64


def check_admit(admit: Admit, config: EngineConfig, vocab_size: int) -> None:
    """Refuse what cannot run. The frontend checks the same earlier and in friendlier words; this keeps the loop alive.

    Raises:
        CommandRefused: FIELD_INVALID, naming the field.
    """
    problem = (
        _tokens_problem(admit, config, vocab_size)
        or _stop_problem(admit, vocab_size)
        or _sampling_problem(admit.sampling, config)
        or _ids_problem(admit.sampling, admit.stop, vocab_size)
    )
    if problem:
        raise CommandRefused(RefusalReason.FIELD_INVALID, problem, sequence_id=admit.sequence_id)


def _are_ids(token_ids: tuple[int, ...], vocab_size: int) -> bool:
    return not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size)


def _tokens_problem(admit: Admit, config: EngineConfig, vocab_size: int) -> str | None:
    num_tokens = len(admit.prompt_ids) + len(admit.emitted_ids)
    if not admit.prompt_ids:
        return "prompt_ids is empty"
    if num_tokens >= config.max_context_tokens:
        return f"prompt_ids and emitted_ids have {num_tokens} tokens; the context is {config.max_context_tokens}"
    if not _are_ids(admit.prompt_ids, vocab_size) or not _are_ids(admit.emitted_ids, vocab_size):
        return f"prompt_ids or emitted_ids hold an id outside 0..{vocab_size - 1}"
    if admit.grant_tokens < len(admit.emitted_ids):
        return f"grant_tokens is {admit.grant_tokens}; {len(admit.emitted_ids)} tokens are emitted already"
    if not all(math.isfinite(adapter.weight) for adapter in admit.adapters):
        return "adapters has a weight that is not finite"
    return None


def _stop_problem(admit: Admit, vocab_size: int) -> str | None:
    stop = admit.stop
    if stop.max_tokens <= len(admit.emitted_ids):
        return f"stop.max_tokens is {stop.max_tokens}; {len(admit.emitted_ids)} tokens are emitted already"
    if not 0 <= stop.min_tokens <= stop.max_tokens:
        return f"stop.min_tokens is {stop.min_tokens}; allowed: 0..{stop.max_tokens}"
    if not _are_ids(stop.stop_token_ids, vocab_size):
        return f"stop.stop_token_ids holds an id outside 0..{vocab_size - 1}"
    return None


def _sampling_problem(sampling: Sampling, config: EngineConfig) -> str | None:
    ranges = (
        ("temperature", 0.0, math.inf),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 1 / _MAX_REPETITION_FACTOR, _MAX_REPETITION_FACTOR),
        ("presence_penalty", -_MAX_PENALTY, _MAX_PENALTY),
        ("frequency_penalty", -_MAX_PENALTY, _MAX_PENALTY),
        ("top_k", 0, math.inf),
        ("seed", 0, _SEED_LIMIT - 1),
    )
    for name, low, high in ranges:
        value = getattr(sampling, name)
        if not (low <= value <= high and value != math.inf):
            return f"sampling.{name} is {value}; allowed: {low}..{high}"
    if not 0.0 < sampling.top_p <= 1.0:
        return f"sampling.top_p is {sampling.top_p}; allowed: above 0, up to 1"
    for name in ("top_logprobs", "prompt_logprobs"):
        value = getattr(sampling, name)
        if value is not None and not 0 <= value <= config.max_top_logprobs:
            return f"sampling.{name} is {value}; allowed: 0..{config.max_top_logprobs}"
    return None


def _ids_problem(sampling: Sampling, stop: Stop, vocab_size: int) -> str | None:
    bias_ids = tuple(token_id for token_id, _ in sampling.logit_bias)
    for name, token_ids in (
        ("logit_bias", bias_ids),
        ("allowed_token_ids", sampling.allowed_token_ids),
        ("banned_token_ids", sampling.banned_token_ids),
    ):
        if not _are_ids(token_ids, vocab_size):
            return f"sampling.{name} holds an id outside 0..{vocab_size - 1}"
    if not all(abs(bias) <= _MAX_PENALTY for _, bias in sampling.logit_bias):
        return f"sampling.logit_bias has a value outside -{_MAX_PENALTY:g}..{_MAX_PENALTY:g}"
    if not _leaves_a_token(sampling, stop, vocab_size):
        return "sampling.allowed_token_ids, sampling.banned_token_ids and stop.min_tokens leave no token"
    return None


def _leaves_a_token(sampling: Sampling, stop: Stop, vocab_size: int) -> bool:
    masked = set(sampling.banned_token_ids)
    if stop.min_tokens > 0:
        masked.update(stop.stop_token_ids)
    if sampling.allowed_token_ids:
        return not masked.issuperset(sampling.allowed_token_ids)
    return len(masked) < vocab_size
