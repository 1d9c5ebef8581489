"""How a sequence ended, and what it cost."""

import dataclasses
import enum


class FinishReason(enum.StrEnum):
    """Why a sequence ended. An error is raised, never returned as a reason."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LIMIT = "context_limit"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one sequence."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_recomputed_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds, all counted from acceptance but ``adapter_load_s``, which is a part of ``queued_s``."""

    queued_s: float = 0.0
    adapter_load_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of one sequence."""

    reason: FinishReason
    stop_string: str | None = None
    """The match, with ``STOP_STRING``."""
    stop_token_id: int | None = None
    """The token that ended it, with ``EOS`` and ``STOP_TOKEN``; it is not among the output's token ids."""
    usage: Usage = Usage()
    timing: Timing = Timing()
