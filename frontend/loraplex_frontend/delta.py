"""One sequence's news, ready to be sent."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """As ``loraplex.v1.SequenceDelta``; positional, because one is made for every sequence and step."""

    handle: int
    index: int
    first_token: int
    num_tokens: int
    token_ids: Sequence[int]
    """Empty if the request did not ask for ids."""
    text: str
    logprobs: Sequence[Any]
    finish: Any
