"""What a stream yields."""

import dataclasses

from loraplex_client.finish import Finish


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """One token's log-probability and the best alternatives (natural logarithms of the model's own distribution)."""

    logprob: float
    rank: int
    """1 = the most likely token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), best first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of one sequence, or its end, or both."""

    index: int
    """Which of the n sequences."""
    first_token: int
    """Index in the sequence of the first token of this delta."""
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    """Whole code points. May lag behind ``token_ids``; all of it has come by the finish."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
