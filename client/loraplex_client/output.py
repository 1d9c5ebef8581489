"""A whole answer."""

import dataclasses

from loraplex_client.adapter_ref import ResolvedAdapter
from loraplex_client.delta import TokenLogprobs
from loraplex_client.finish import Finish


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptInfo:
    """What the server made of the prompt, known before the first token."""

    num_prompt_tokens: int
    adapters: tuple[ResolvedAdapter, ...] = ()
    """Empty for the base model; one entry a part of a composition."""
    model: str = ""
    seed: int = 0
    """The seed in use, given or picked."""
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    """Per prompt token where asked for; None for the first, which nothing predicts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """One of the n sequences."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """All sequences of one request."""

    request_id: str
    prompt: PromptInfo
    sequences: tuple[SequenceOutput, ...]

    @property
    def text(self) -> str:
        """The text of the first sequence."""
        return self.sequences[0].text
