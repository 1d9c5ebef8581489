"""How tokens are chosen, when a sequence ends and what comes back, under the field names and defaults of vLLM."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from loraplex_contract.errors import Unsupported, field_error

UNSUPPORTED: Final = frozenset(
    {
        "bad_words",
        "best_of",
        "extra_args",
        "flat_logprobs",
        "guided_decoding",
        "logits_processors",
        "logprob_token_ids",
        "output_kind",
        "prompt_logprob_start",
        "prompt_logprob_token_ids",
        "repetition_detection",
        "routed_experts_prompt_start",
        "skip_clone",
        "skip_reading_prefix_cache",
        "spaces_between_special_tokens",
        "stream_interval",
        "structured_outputs",
        "thinking_token_budget",
        "trace_decode_token_ids",
        "truncate_prompt_tokens",
        "use_beam_search",
    }
)
"""Fields of vLLM without a counterpart here: known, so that they are refused by name."""


@dataclasses.dataclass(slots=True)
class SamplingParams:
    """Fields, order and defaults are vLLM's, so that its scripts run unchanged; the server checks all bounds.

    Raises:
        Unsupported: a field of vLLM that has no counterpart here is not at its default. All of them are named.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 = off."""
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None = up to the model's context."""
    min_tokens: int = 0
    logprobs: int | None = None
    """How many alternatives to report per token; 0 = the chosen token only."""
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: Any = None
    prompt_logprob_start: Any = None
    logprob_token_ids: Any = None
    flat_logprobs: Any = False
    detokenize: bool = True
    """False = token ids only, no text."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: Any = True
    include_stop_str_in_output: bool = False
    output_kind: Any = None
    stream_interval: Any = None
    skip_clone: Any = False
    structured_outputs: Any = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: Any = None
    bad_words: Any = None
    skip_reading_prefix_cache: Any = None
    thinking_token_budget: Any = None
    repetition_detection: Any = None
    routed_experts_prompt_start: Any = 0
    trace_decode_token_ids: Any = None
    # Of earlier releases of vLLM, still met in scripts.
    best_of: Any = None
    guided_decoding: Any = None
    logits_processors: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = False
    # Ours, beyond vLLM.
    banned_token_ids: list[int] | None = None
    time_limit_s: float | None = None
    """Ends the sequence with what it has; counts from acceptance."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuses by name what is not supported. Called again when a request is made, since fields may be set later."""
        fields = [field for field in dataclasses.fields(self) if field.name in UNSUPPORTED]
        refused = [field.name for field in fields if getattr(self, field.name) != field.default]
        if refused:
            raise Unsupported(f"SamplingParams: {', '.join(refused)}: not supported here; leave it at its default")

    def clone(self) -> "SamplingParams":
        """A deep copy."""
        return copy.deepcopy(self)


def chosen_sampling(sampling: SamplingParams | None, fields: Mapping[str, Any]) -> SamplingParams:
    """The params that were given, or those made of single fields. Raises InvalidArgument if both were."""
    if sampling is not None and fields:
        raise field_error("sampling", f"give either SamplingParams or single fields ({', '.join(fields)}), not both")
    return sampling or SamplingParams(**fields)
