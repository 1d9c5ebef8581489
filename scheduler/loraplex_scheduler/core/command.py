"""Everything that the core can ask of its shell.

Commands to one peer are carried out in their order. A command to a worker is for one registration of it, by epoch, and
dies with that. A worker may apply the commands of one frame in the order retire,
evict, load, grant, admit; the shell then leaves out the admission of what the same frame retires.
"""

import dataclasses
from typing import TypeAlias

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core.adapter import ResolvedAdapter
from loraplex_scheduler.core.event import RequestKey
from loraplex_scheduler.core.finish import FinishReason, Timing, Usage
from loraplex_scheduler.core.sampling import Sampling


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeight:
    digest: str
    weight: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Put a sequence into the worker's standing batch."""

    worker_id: str
    epoch: int
    sequence_id: int
    """New for each admission: a resumed sequence comes under a new id."""
    prompt_ids: tuple[int, ...]
    emitted_ids: tuple[int, ...]
    """Sent to the client before: computed again, not reported again."""
    adapters: tuple[AdapterWeight, ...]
    sampling: Sampling
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    grant_tokens: int
    """As in Grant."""
    prefix_namespace: bytes = b""
    """Which sequences may share prefixes with it, see ``prefix_namespace``. Empty: none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    worker_id: str
    epoch: int
    sequence_id: int
    grant_tokens: int
    """Cumulative: output tokens that the sequence may reach, emitted ones included."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    worker_id: str
    epoch: int
    sequence_id: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    worker_id: str
    epoch: int
    digest: str
    num_pages: int
    timeout_ns: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvictAdapter:
    worker_id: str
    epoch: int
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget:
    worker_id: str
    epoch: int
    max_step_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FenceWorker:
    """Hear this registration no more. The core has taken the worker as lost already."""

    worker_id: str
    epoch: int
    cause: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    key: RequestKey
    request_id: str
    queue_position: int
    """Requests that waited before it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Queued with everything resolved; follows Accepted at once."""

    key: RequestKey
    adapters: tuple[ResolvedAdapter, ...]
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The request's only terminal: it was never accepted."""

    key: RequestKey
    error: LoraplexError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobsReady:
    key: RequestKey
    entries: tuple[object, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Output tokens of one sequence; indices are contiguous over all of them."""

    key: RequestKey
    index: int
    first_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[object, ...] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The terminal of one sequence of an accepted request."""

    key: RequestKey
    index: int
    reason: FinishReason
    usage: Usage
    timing: Timing
    stop_token_id: int | None = None
    error: LoraplexError | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelAnswered:
    frontend_id: str
    nonce: int
    found: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionReleased:
    """No name, no lease and no worker holds this version any more."""

    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGone:
    """An unregistered name is complete: every version that only it held is released."""

    tenant: str
    name: str


WorkerCommand: TypeAlias = Admit | Grant | Retire | LoadAdapter | EvictAdapter | SetBudget
FrontendCommand: TypeAlias = Accepted | Started | Rejected | PromptLogprobsReady | Tokens | Finished
Command: TypeAlias = WorkerCommand | FenceWorker | FrontendCommand | CancelAnswered | VersionReleased | AdapterGone
