"""What a request may say besides its prompt, adapter and sampling."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Scheduling and bookkeeping of one request."""

    request_id: str = ""
    """Unique among the tenant's running requests. Empty: the client makes one."""
    model: str = ""
    """Empty: the one that is served."""
    priority: int = 0
    """Smaller runs first, -100 to 100."""
    timeout_s: float | None = None
    """From acceptance to the last token; past it DeadlineExceeded."""
    queue_timeout_s: float | None = None
    """From acceptance to admission into a batch."""
    first_token_timeout_s: float | None = None
    """From acceptance to the first token. Predicted to be missed: ResourceExhausted, SLO_UNATTAINABLE."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


DEFAULT_OPTIONS = RequestOptions()
