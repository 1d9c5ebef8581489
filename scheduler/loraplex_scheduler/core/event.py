"""Everything that the core can be told. Each event comes with a time in nanoseconds of one monotonic clock.

Deadlines in events are points on that clock. A worker's events carry the epoch of its registration, a frontend's the
incarnation of its stream; events of another epoch or incarnation than the connected one are dropped.
"""

import dataclasses
import enum
from typing import NamedTuple, TypeAlias

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.sampling import GREEDY, Sampling


class RequestKey(NamedTuple):
    """Who asked, and the number they gave the request."""

    frontend_id: str
    handle: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConnected:
    frontend_id: str
    incarnation: str
    """Differs for every stream."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontendLost:
    frontend_id: str
    incarnation: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request that the frontend has checked for form."""

    key: RequestKey
    """Of a handle that is not in use: a second submission under one that is, is dropped."""
    tenant: str
    request_id: str
    prompt_ids: tuple[int, ...]
    adapters: tuple[AdapterPart, ...] = ()
    """Empty = the base model."""
    sampling: Sampling = GREEDY
    num_sequences: int = 1
    max_tokens: int | None = None
    """Output tokens of each sequence. None = as many as fit."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0
    """Smaller runs first."""
    deadline_ns: int | None = None
    """Past it the request ends DEADLINE_EXCEEDED."""
    queue_deadline_ns: int | None = None
    """The same, for sequences that have not been admitted by then."""
    first_token_deadline_ns: int | None = None
    """The caller's service level: sequences that cannot begin by then are refused, or ended while they wait."""
    time_limit_ns: int | None = None
    """Past it the request ends OK with what it has."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """By key, or by tenant and request id on whichever frontend it runs."""

    frontend_id: str
    """Who asks, and gets the answer."""
    key: RequestKey | None = None
    tenant: str = ""
    request_id: str = ""
    nonce: int = 0
    """0 = no answer wanted."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStopped:
    """The frontend found a stop string: the sequence is over after ``num_tokens`` output tokens."""

    key: RequestKey
    index: int
    num_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker's name and sizes."""

    worker_id: str
    epoch: int
    """Of this registration; grows with each."""
    device: str
    num_pages: int
    page_size: int
    """Tokens of KV in a page."""
    page_bytes: int
    adapter_parameter_bytes: int
    """Bytes of one adapter parameter on the device."""
    max_sequences: int
    max_step_tokens: int
    max_context_tokens: int
    vocab_size: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnected:
    """It holds nothing: no sequence, no adapter. An earlier registration of the same worker is lost."""

    info: WorkerInfo


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    worker_id: str
    epoch: int


class WorkerFinish(enum.Enum):
    """Why a worker ended a sequence."""

    STOP_TOKEN = "STOP_TOKEN"
    MAX_TOKENS = "MAX_TOKENS"
    CONTEXT_LIMIT = "CONTEXT_LIMIT"
    NUMERICAL = "NUMERICAL"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """New output tokens of one sequence."""

    sequence_id: int
    first_index: int
    """Index of the first of them in the sequence's output."""
    token_ids: tuple[int, ...]
    logprobs: tuple[object, ...] | None = None
    """One for each token, opaque to the core."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFinish:
    """A worker ended this sequence and has freed its pages."""

    sequence_id: int
    reason: WorkerFinish
    stop_token_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    sequence_id: int
    entries: tuple[object, ...]
    """Opaque to the core."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHit:
    """Leading tokens of a sequence, of prompt and emitted output, that the worker did not have to compute."""

    sequence_id: int
    num_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReported:
    """What one step of a worker did. Emissions are applied first, then finishes."""

    worker_id: str
    epoch: int
    step: int
    emissions: tuple[Emission, ...] = ()
    finishes: tuple[SequenceFinish, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    num_rows: int = 0
    num_decode_rows: int = 0
    adapter_digests: frozenset[str] = frozenset()
    has_base_rows: bool = False
    duration_ns: int = 0
    prefix_hits: tuple[PrefixHit, ...] = ()
    """Of sequences whose first rows were in this step."""


class WorkerAdapterState(enum.Enum):
    DEVICE = "DEVICE"
    EVICTED = "EVICTED"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChanged:
    """A worker's answer to a load or an eviction."""

    worker_id: str
    epoch: int
    digest: str
    state: WorkerAdapterState
    num_bytes: int = 0
    error: LoraplexError | None = None
    """With FAILED."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommandRefused:
    """A worker could not carry out a command; nothing else was harmed."""

    worker_id: str
    epoch: int
    reason: str
    sequence_id: int | None = None
    digest: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCommitted:
    """The registry points a name at a version, durably. The newest committed one is current."""

    tenant: str
    name: str
    number: int
    digest: str
    num_parameters: int


class UnregisterMode(enum.Enum):
    DRAIN = "DRAIN"
    CANCEL = "CANCEL"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUnregistered:
    """The registry has marked the name as draining, durably. Answered by AdapterGone, sooner or later."""

    tenant: str
    name: str
    mode: UnregisterMode


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    FrontendConnected
    | FrontendLost
    | Submitted
    | CancelRequested
    | SequenceStopped
    | WorkerConnected
    | WorkerLost
    | StepReported
    | AdapterChanged
    | CommandRefused
    | AdapterCommitted
    | AdapterUnregistered
    | Tick
)
