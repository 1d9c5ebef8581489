"""Ends a source that sends too little."""

from loraplex_frontend.sources.source_errors import too_slow
from loraplex_frontend.sources.source_limits import SourceLimits


class RateGuard:
    """Counts only the time that was spent waiting for the source, not what our disk took."""

    def __init__(self, limits: SourceLimits) -> None:
        self._limits = limits
        self._num_bytes = 0
        self._waited_s = 0.0

    def add(self, num_bytes: int, waited_s: float) -> None:
        """Raises DeadlineExceeded (SOURCE_TIMEOUT)."""
        self._num_bytes += num_bytes
        self._waited_s += waited_s
        if self._waited_s < self._limits.rate_window_s:
            return
        if self._num_bytes < self._limits.min_bytes_per_s * self._waited_s:
            raise too_slow(f"sends less than {self._limits.min_bytes_per_s} bytes a second")
        self._num_bytes, self._waited_s = 0, 0.0
