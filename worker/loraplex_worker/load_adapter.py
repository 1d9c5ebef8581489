"""The scheduler's wish to have one adapter version on the device."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Bring a version from the store to the device: an engine command only once its weights are in memory."""

    digest: str
    num_pages: int
    """Charged to the page pool when it is attached."""
    timeout_s: float | None
    """The load is given up after this; None = the worker's own setting."""
