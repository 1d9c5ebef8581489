"""A sequence on a virtual worker: counts instead of tensors."""

from typing import Final

from loraplex_scheduler.core.command import Admit


class VirtualSequence:
    """Prompt and earlier output are computed first, then one token a step."""

    __slots__ = (
        "digests",
        "grant_tokens",
        "max_tokens",
        "num_computed",
        "num_output",
        "num_pages",
        "num_pending",
        "num_prompt",
        "rank",
        "sequence_id",
    )

    def __init__(self, admit: Admit, *, rank: int, num_pages: int) -> None:
        self.sequence_id: Final = admit.sequence_id
        self.digests: Final = tuple(part.digest for part in admit.adapters)
        self.rank: Final = rank
        """Of its adapters together."""
        self.num_prompt: Final = len(admit.prompt_ids)
        self.max_tokens: Final = admit.max_tokens
        self.num_output = len(admit.emitted_ids)
        self.num_pending = self.num_prompt + self.num_output
        """Tokens to compute before the next one comes."""
        self.num_computed = 0
        self.grant_tokens = admit.grant_tokens
        self.num_pages = num_pages

    @property
    def is_granted(self) -> bool:
        return self.num_output < self.grant_tokens
