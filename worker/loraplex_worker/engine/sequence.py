"""The state of one live sequence. The engine owns it and nobody else sees it."""

from loraplex_contract import prefix_key
from loraplex_worker.engine.command import Admit
from loraplex_worker.engine.page_keys import PageKeys
from loraplex_worker.engine.report import Finish, TokenLogprobs
from loraplex_worker.engine.sampling_state import SamplingState


class Sequence:
    """Tokens, progress and pages of one sequence.

    Life: its first ``num_prefill`` tokens (prompt and what was emitted before) are computed in chunks; the last of them
    gives the first new token; from then on each step computes one token and gives the next. It rests, without rows,
    while the output is as long as the grant.
    """

    __slots__ = (
        "adapter_key",
        "adapters",
        "grant_tokens",
        "num_computed",
        "num_prefill",
        "num_prompt",
        "num_published",
        "num_reused",
        "ordinal",
        "page_ids",
        "page_keys",
        "prompt_logprobs",
        "sampling",
        "sequence_id",
        "stop",
        "stop_token_ids",
        "tokens",
        "top_logprobs",
    )

    def __init__(self, admit: Admit, *, ordinal: int, page_size: int) -> None:
        self.sequence_id = admit.sequence_id
        self.ordinal = ordinal
        """Place in the order of admission."""
        self.tokens = [*admit.prompt_ids, *admit.emitted_ids]
        self.num_prompt = len(admit.prompt_ids)
        self.num_prefill = len(self.tokens)
        self.num_computed = 0
        """Tokens whose K and V are in the pages."""
        self.num_reused = 0
        """Of them, those that others had computed."""
        self.num_published = 0
        """Leading pages that were given to the prefix cache, or came from it."""
        self.adapters = admit.adapters
        self.adapter_key = tuple(adapter.digest for adapter in admit.adapters)
        self.grant_tokens = admit.grant_tokens
        self.page_ids: tuple[int, ...] = ()
        self.page_keys = _page_keys(admit, self.tokens, page_size)
        """None: neither reads prefixes of others nor leaves its own."""
        self.stop = admit.stop
        self.stop_token_ids = frozenset(admit.stop.stop_token_ids)
        self.sampling = SamplingState(
            admit.sampling, admit.stop, prompt_ids=admit.prompt_ids, output_ids=admit.emitted_ids
        )
        self.top_logprobs = admit.sampling.top_logprobs
        # Emitted tokens prove that the prompt's logprobs went out in an earlier life.
        wants_prompt = admit.sampling.prompt_logprobs is not None and not admit.emitted_ids
        self.prompt_logprobs: list[TokenLogprobs | None] | None = [None] if wants_prompt else None

    @property
    def num_output(self) -> int:
        """Output tokens, emitted ones of an earlier life included."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not in the cache yet."""
        return len(self.tokens) - self.num_computed

    @property
    def is_started(self) -> bool:
        """Whether it has computed rows itself."""
        return self.num_computed > self.num_reused

    @property
    def is_granted(self) -> bool:
        """Whether it may produce one more token."""
        return len(self.tokens) - self.num_prompt < self.grant_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed >= self.num_prefill

    def append(self, token_id: int, *, max_context_tokens: int) -> Finish | None:
        """Take one sampled token; returns why the sequence is over, if it is. A stop token is not kept."""
        if token_id in self.stop_token_ids:
            return Finish.STOP_TOKEN
        self.tokens.append(token_id)
        self.sampling.observe(token_id)
        if self.sampling.num_output >= self.stop.max_tokens:
            return Finish.MAX_TOKENS
        if len(self.tokens) >= max_context_tokens:
            return Finish.CONTEXT_LIMIT
        return None


def _page_keys(admit: Admit, tokens: list[int], page_size: int) -> PageKeys | None:
    if not admit.prefix_namespace:
        return None
    adapters = [(adapter.digest, adapter.weight) for adapter in admit.adapters]
    return PageKeys(prefix_key.root_key(admit.prefix_namespace, adapters), tokens, page_size)
