"""A request that has been checked: plain values, every default filled in. Nothing behind this knows protobuf."""

import dataclasses
from collections.abc import Sequence

from loraplex_frontend.text.chat_template import Conversation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPart:
    """One adapter and its weight; a single adapter is a composition of one."""

    name: str
    version: str
    """Empty, a version number or a digest."""
    weight: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """A folder that has yet to become an adapter."""

    uri: str
    scale: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    token_ids: Sequence[int]


Prompt = TextPrompt | TokenPrompt | Conversation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """As ``loraplex.v1.SamplingParams``."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    seed: int | None
    num_sequences: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopCriteria:
    max_tokens: int | None
    min_tokens: int
    strings: tuple[str, ...]
    token_ids: tuple[int, ...]
    ignore_eos: bool
    include_stop_string: bool
    time_limit_s: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    text: bool
    token_ids: bool
    top_logprobs: int | None
    prompt_logprobs: int | None
    skip_special_tokens: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    priority: int
    timeout_s: float | None
    queue_timeout_s: float | None
    first_token_timeout_s: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    request_id: str
    adapters: tuple[AdapterPart, ...]
    """Empty: the base model, or what ``source`` becomes."""
    source: AdapterSource | None
    prompt: Prompt
    sampling: Sampling
    stop: StopCriteria
    output: OutputOptions
    scheduling: Scheduling


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coalescing:
    """As ``loraplex.v1.StreamOptions``."""

    min_tokens: int = 1
    max_delay_s: float = 0.0
