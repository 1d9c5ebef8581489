"""How long and how slowly a source may answer."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceLimits:
    """All of one fetch, i.e. of both files."""

    connect_s: float = 5.0
    """Name look-up, TCP and TLS, for each host on the way."""
    read_s: float = 20.0
    """Between two pieces, and until the answer begins."""
    total_s: float = 600.0
    """Whatever happens."""
    min_bytes_per_s: int = 16_384
    """Over each ``rate_window_s`` that was spent waiting for the source."""
    rate_window_s: float = 30.0
    max_redirects: int = 5
