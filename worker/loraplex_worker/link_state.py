"""How the worker's connection is, for whoever watches it."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    is_up: bool
    lease_left_s: float
    """Until the worker stops by itself; 0 while the link is down."""
    num_waiting_frames: int
    """For the scheduler to read."""
    num_losses: int
    """Streams that were lost and attempts that failed, since the start."""
