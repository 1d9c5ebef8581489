"""What every session of a frontend is held to."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    max_in_flight: int
    """Requests that may be open at once in one session."""
    heartbeat_s: float
    max_stream_bytes: int
    """Output that may wait for a slow reader; past it the stream's requests end SLOW_CONSUMER."""
    max_used_handles: int = 100_000
    """Handles used out of order that are remembered."""
