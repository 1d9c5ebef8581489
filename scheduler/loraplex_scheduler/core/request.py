"""A request and its sequences while they live. The core owns them; nothing outside sees them."""

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Final

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.adapter import ResolvedAdapter
from loraplex_scheduler.core.command import AdapterWeight
from loraplex_scheduler.core.event import RequestKey, Submitted
from loraplex_scheduler.core.finish import Timing, Usage
from loraplex_scheduler.core.lifecycle import State, Transition, after
from loraplex_scheduler.core.sampling import Sampling
from loraplex_scheduler.core.seed import sequence_seed

if TYPE_CHECKING:
    from loraplex_scheduler.core.lane import Lane


class Sequence:
    """One of the n continuations of a request's prompt."""

    __slots__ = (
        "admitted_ns",
        "displaced_ns",
        "emitted",
        "first_token_ns",
        "grant_tokens",
        "home_id",
        "index",
        "is_fresh",
        "lane",
        "load_ns",
        "num_cached",
        "num_recomputed",
        "overtaken_ns",
        "queued_ns",
        "request",
        "right",
        "sequence_id",
        "started_ns",
        "state",
        "ticket",
        "worker_id",
    )

    def __init__(self, request: "Request", index: int, *, now_ns: int) -> None:
        self.request: Final = request
        self.index: Final = index
        self.right: Final = (request.priority, request.arrival, index)
        """In the order of class and arrival; it never changes, so whoever has the least can always get on."""
        self.state = State.QUEUED
        self.emitted: list[int] = []
        """All output tokens that went to the frontend."""
        self.grant_tokens = 0
        """Of the present admission."""
        self.sequence_id = 0
        """Of the present admission; 0 while there is none."""
        self.worker_id: str | None = None
        self.home_id: str | None = None
        """The worker that keeps room for it, once it has been overtaken for too long."""
        self.ticket = 0
        """Of its place in the waiting room; 0 while it does not wait."""
        self.lane: Lane | None = None
        """Where it waits."""
        self.overtaken_ns: int | None = None
        """Since when others of less right got in, this time."""
        self.started_ns = 0
        """The present or last admission."""
        self.is_fresh = False
        """Whether it was admitted and has no token to show for it yet."""
        self.displaced_ns: int | None = None
        """When it last gave way to a better class."""
        self.queued_ns = now_ns
        """Since when it waits, this time."""
        self.admitted_ns: int | None = None
        """First admission."""
        self.first_token_ns: int | None = None
        self.load_ns = 0
        self.num_cached = 0
        self.num_recomputed = 0

    def __repr__(self) -> str:
        return f"Sequence({self.request.key}, {self.index}, {self.state.value})"

    @property
    def num_output(self) -> int:
        return len(self.emitted)

    @property
    def max_tokens(self) -> int:
        assert self.request.max_tokens is not None, "no worker has been seen, so nothing can be admitted"
        return self.request.max_tokens

    def move(self, transition: Transition) -> None:
        self.state = after(self.state, transition)

    def sampling(self) -> Sampling:
        return self.request.sampling_of(self.index)

    def take_prefix_hit(self, num_tokens: int) -> None:
        """The present admission did not have to compute its first ``num_tokens`` tokens."""
        if self.num_recomputed:
            # At least the last token is computed, whatever a worker says.
            self.num_recomputed = max(1, self.num_recomputed - num_tokens)
        else:
            self.num_cached = num_tokens

    def usage(self, num_output_tokens: int | None = None) -> Usage:
        return Usage(
            num_prompt_tokens=len(self.request.prompt_ids),
            num_output_tokens=self.num_output if num_output_tokens is None else num_output_tokens,
            num_cached_tokens=self.num_cached,
            num_recomputed_tokens=self.num_recomputed,
        )

    def timing(self, now_ns: int) -> Timing:
        accepted_ns = self.request.accepted_ns
        return Timing(
            queued_ns=None if self.admitted_ns is None else self.admitted_ns - accepted_ns,
            adapter_load_ns=self.load_ns,
            first_token_ns=None if self.first_token_ns is None else self.first_token_ns - accepted_ns,
            total_ns=now_ns - accepted_ns,
        )


class Request:
    """What was asked, what it resolved to, and the sequences that are not done."""

    __slots__ = (
        "accepted_ns",
        "account",
        "adapters",
        "arrival",
        "digests",
        "first_token_deadline_ns",
        "had_places",
        "has_prompt_logprobs",
        "is_open_ended",
        "key",
        "max_tokens",
        "min_tokens",
        "num_unfinished",
        "num_worker_losses",
        "places",
        "prefix_keys",
        "priority",
        "prompt_ids",
        "request_id",
        "sampling",
        "seed",
        "sequences",
        "stop_token_ids",
        "tenant",
        "weights",
    )

    def __init__(
        self,
        submitted: Submitted,
        adapters: SequenceOf[ResolvedAdapter],
        *,
        account: Account,
        seed: int,
        arrival: int,
        now_ns: int,
    ) -> None:
        self.key: Final[RequestKey] = submitted.key
        self.tenant: Final = submitted.tenant
        self.request_id: Final = submitted.request_id
        self.prompt_ids: Final = submitted.prompt_ids
        self.adapters: Final = tuple(adapters)
        self.weights: Final = tuple(AdapterWeight(digest=part.digest, weight=part.weight) for part in adapters)
        self.digests: Final = tuple(part.digest for part in adapters)
        self.sampling: Final = submitted.sampling
        self.seed: Final = seed
        self.priority: Final = submitted.priority
        self.arrival: Final = arrival
        """Counts requests in the order of acceptance."""
        self.is_open_ended: Final = submitted.max_tokens is None
        self.max_tokens = submitted.max_tokens
        """None only until an open-ended request has met its first worker."""
        self.min_tokens: Final = submitted.min_tokens
        self.stop_token_ids: Final = submitted.stop_token_ids
        self.first_token_deadline_ns: Final = submitted.first_token_deadline_ns
        self.account: Final = account
        """What its service is charged to."""
        self.accepted_ns: Final = now_ns
        self.has_prompt_logprobs = False
        """Whether they have been sent."""
        self.num_worker_losses = 0
        """Without a token in between."""
        self.prefix_keys: tuple[int, tuple[bytes, ...]] | None = None
        """Page size, and the keys of the prompt's pages of that size; made when first asked for."""
        self.had_places = False
        self.places: frozenset[str] = frozenset()
        """Workers on which a sequence could run to its end if it were alone there."""
        self.sequences: Final = tuple(Sequence(self, index, now_ns=now_ns) for index in range(submitted.num_sequences))
        self.num_unfinished = len(self.sequences)

    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.state is not State.DONE]

    def sampling_of(self, index: int) -> Sampling:
        """With the sequence's own seed; only the first computes the prompt's logprobs, all have the same."""
        given = self.sampling
        return Sampling(
            temperature=given.temperature,
            top_k=given.top_k,
            top_p=given.top_p,
            min_p=given.min_p,
            repetition_penalty=given.repetition_penalty,
            presence_penalty=given.presence_penalty,
            frequency_penalty=given.frequency_penalty,
            logit_bias=given.logit_bias,
            allowed_token_ids=given.allowed_token_ids,
            banned_token_ids=given.banned_token_ids,
            seed=sequence_seed(self.seed, index),
            top_logprobs=given.top_logprobs,
            prompt_logprobs=given.prompt_logprobs if index == 0 else None,
        )
