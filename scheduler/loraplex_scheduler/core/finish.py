"""How a sequence ended, and what it took."""

import dataclasses
import enum


class FinishReason(enum.Enum):
    """Which stop ids are end-of-sequence ids is the frontend's knowledge: it turns STOP_TOKEN into EOS."""

    STOP_STRING = "STOP_STRING"
    STOP_TOKEN = "STOP_TOKEN"
    MAX_TOKENS = "MAX_TOKENS"
    CONTEXT_LIMIT = "CONTEXT_LIMIT"
    TIME_LIMIT = "TIME_LIMIT"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Of the prompt, taken from a worker's prefix cache at the first admission."""
    num_recomputed_tokens: int
    """Prompt and output tokens computed again, after a preemption or the loss of a worker."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All from acceptance; None where it never came to that."""

    queued_ns: int | None
    """To the first admission."""
    adapter_load_ns: int
    """Part of ``queued_ns`` in which an adapter was loading."""
    first_token_ns: int | None
    total_ns: int
