"""What a scheduler tells an engine: small differences to the standing batch. No tensors but adapter weights."""

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from loraplex_worker.model.lora_weights import LoraWeights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeight:
    """One adapter version that a sequence uses, and how strongly."""

    digest: str
    weight: float
    """Multiplies the effective scale of every site of the adapter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits. The defaults are plain greedy decoding."""

    temperature: float = 0.0
    """0 = greedy: the highest logit, ties to the lowest token id."""
    top_k: int = 0
    """0 = off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output: positive logits are divided by it, negative ones multiplied."""
    presence_penalty: float = 0.0
    """Subtracted once from each token that the output holds."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the output holds a token."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty = all."""
    banned_token_ids: tuple[int, ...] = ()
    seed: int = 0
    """Unsigned 64 bits."""
    top_logprobs: int | None = None
    """None = no logprobs; 0 = the chosen token's only; k = and the k likeliest."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """When a sequence ends."""

    stop_token_ids: tuple[int, ...] = ()
    """EOS ids are already among them, unless the caller ignores EOS."""
    max_tokens: int
    """Output tokens, emitted ones included."""
    min_tokens: int = 0
    """Stop tokens cannot be sampled before so many output tokens."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Put a sequence into the standing batch.

    Refused if the id is live, an adapter is not attached, or the pool lacks
    ``ceil((len(prompt_ids) + grant_tokens) / page_size)`` free pages.
    """

    sequence_id: int
    prompt_ids: tuple[int, ...]
    emitted_ids: tuple[int, ...] = ()
    """Output tokens sent before a preemption or a move: recomputed, not emitted again."""
    adapters: tuple[AdapterWeight, ...] = ()
    """Empty = base model."""
    sampling: Sampling
    stop: Stop
    grant_tokens: int
    """As in Grant."""
    prefix_namespace: bytes = b""
    """It shares pages with sequences of the same namespace, adapters, weights and leading tokens. Empty: with none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Let a sequence go on. Idempotent; never lowers; an unknown id (it just finished) is ignored."""

    sequence_id: int
    grant_tokens: int
    """CUMULATIVE output tokens that the sequence may reach, emitted ones included."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Drop a sequence now and free its pages: finished, cancelled or preempted. An unknown id is ignored."""

    sequence_id: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttachAdapter:
    """Make an adapter usable and charge its pages. Refused if attached already or if the pages are not free."""

    digest: str
    weights: "LoraWeights"
    num_pages: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvictAdapter:
    """Free an adapter's pages. Refused while a live sequence uses it; an unknown digest is ignored."""

    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget:
    """Change how many rows a step has, see ``EngineConfig.max_step_tokens``."""

    max_step_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Drop every sequence, free every adapter, restore the budget: a new term with a scheduler begins."""


Command: TypeAlias = Admit | Grant | Retire | AttachAdapter | EvictAdapter | SetBudget | Reset
