"""How tokens are chosen. The core fills in the seed and passes the rest through."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Checked by the frontend, every default filled in."""

    temperature: float = 0.0
    """0 = greedy."""
    top_k: int = 0
    """0 = off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty = all."""
    banned_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    """Unsigned 64 bits. None from a frontend: the core derives one. Never None in a command."""
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None


GREEDY = Sampling()
