"""The bounds of a request: those of the contract, and those of this deployment."""

import dataclasses
from typing import Final

MAX_SEQUENCES: Final = 16
MAX_TOP_LOGPROBS: Final = 20
MAX_LOGIT_BIAS: Final = 1_024
MAX_ALLOWED_IDS: Final = 4_096
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_BYTES: Final = 256
MAX_STOP_TOKEN_IDS: Final = 64
MAX_LABELS: Final = 16
MAX_LABEL_BYTES: Final = 128
MAX_MESSAGES: Final = 1_024
MAX_ROLE_CHARS: Final = 32
MAX_TEMPLATE_ARGS_BYTES: Final = 65_536
MAX_TEMPLATE_ARGS_DEPTH: Final = 16
MAX_COMPOSITION: Final = 8
MAX_ABS_SCALE: Final = 16.0
MAX_HOLD_TOKENS: Final = 1_024
MAX_HOLD_S: Final = 1.0
MAX_URI_CHARS: Final = 4_096
UINT32_MAX: Final = (1 << 32) - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request is checked against."""

    model_name: str
    vocab_size: int
    max_context_tokens: int
    """Prompt and output together, of the least of the connected workers."""
    max_prompt_bytes: int
    max_timeout_s: float
    roles: frozenset[str]
    """That the chat template knows."""
    reserved_template_names: frozenset[str]
