"""What an engine tells after each step. Plain values, no tensors."""

import dataclasses
import enum


class Finish(enum.Enum):
    """Why a sequence ended by itself."""

    STOP_TOKEN = "STOP_TOKEN"
    MAX_TOKENS = "MAX_TOKENS"
    CONTEXT_LIMIT = "CONTEXT_LIMIT"
    """Prompt and output together reached the model's maximum length."""
    NUMERICAL = "NUMERICAL"
    """This sequence's logits were not finite, or its constraints left no token. The others go on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """One token under the raw model: log-softmax of the logits before any penalty, bias, mask or temperature."""

    logprob: float
    rank: int
    """1 = the likeliest token. Ties share the best rank."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest tokens, best first, ties by id."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """New output tokens of one sequence, or its end, or both."""

    sequence_id: int
    first_index: int
    """Index in the request's output of the first token here. Counts tokens emitted before a preemption."""
    token_ids: tuple[int, ...]
    """A stop token is not among them. Empty only where ``finish`` is set."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One for each token id, where asked for."""
    finish: Finish | None = None
    """Set in the sequence's last emission. Its pages are free by then; no Retire is needed."""
    stop_token_id: int | None = None
    """Which token ended it, with STOP_TOKEN."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """All prompt tokens of one sequence, sent once, in the step that ends its prefill."""

    sequence_id: int
    entries: tuple[TokenLogprobs | None, ...]
    """One for each prompt token; the first is None, since nothing precedes it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHit:
    """A sequence that did not have to compute all of its tokens."""

    sequence_id: int
    num_tokens: int
    """Leading ones, of prompt and emitted output, whose K and V others had computed. Never all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PageCounts:
    """The ledger of the device pool: ``free + kv + adapter == total``.

    Each sequence counts in full, also for pages that it shares; pages that only rest in the prefix cache are free.
    """

    free: int
    kv: int
    adapter: int
    total: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did."""

    step: int
    """Counts from 1."""
    emissions: tuple[Emission, ...]
    prompt_logprobs: tuple[PromptLogprobs, ...]
    num_rows: int
    num_decode_rows: int
    num_prefill_rows: int
    adapter_digests: frozenset[str]
    """Adapters that had rows in this step."""
    has_base_rows: bool
    """Whether some row had no adapter."""
    pages: PageCounts
    """After the step."""
    duration_ns: int
    prefix_hits: tuple[PrefixHit, ...] = ()
    """Of the sequences whose first rows were in this step; without those that found nothing."""
