"""What an engine must know besides its model."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine. All are limits that hold at every step."""

    num_pages: int
    """Pages of the device pool, for KV and adapters together."""
    page_size: int = 16
    """Tokens of KV in a page."""
    max_context_tokens: int
    """Prompt and output of one sequence; at most what the model's positions allow."""
    max_sequences: int = 256
    """Live sequences, paused ones included."""
    max_step_tokens: int = 512
    """Rows of a step: one for each decoding sequence, then prefill up to this. SetBudget changes it. Where decoding
    leaves prefill less than an eighth of it (at least one row), prefill gets that much all the same: no sequence waits
    for others to end."""
    max_prompt_logprob_rows: int = 64
    """Prefill rows of a step whose logits are wanted: each costs a row of the vocabulary in float32."""
    max_top_logprobs: int = 64
    """Largest number of alternatives a request may ask for."""
    has_prefix_cache: bool = True
    """Whether sequences with a namespace share prefixes. What an Admit says of it is ignored otherwise."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is not bool and value < 1:
                raise ValueError(f"engine setting {field.name}={value}: must be at least 1")
