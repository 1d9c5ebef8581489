"""What every process tells of itself, whatever it does."""

import asyncio
import importlib.metadata
from typing import Final

from loraplex_contract.metrics import Kind, MetricSpec, MetricTable, doubling

PROBE_INTERVAL_S: Final = 0.25

SPECS: Final = (
    MetricSpec(
        name="loraplex_build_info",
        kind=Kind.GAUGE,
        labels=("process", "name", "version"),
        help="Always 1. Which process this is and what it runs.",
    ),
    MetricSpec(
        name="loraplex_event_loop_lag_seconds",
        kind=Kind.HISTOGRAM,
        buckets=doubling(0.001, 4),
        help="How late the event loop came to a timer that it looks at four times a second.",
    ),
)


class ProcessMetrics:
    """Build and loop lag. Lives on the running loop between ``start`` and ``stop``."""

    def __init__(self, *, process: str, name: str) -> None:
        self.table: Final = MetricTable(SPECS)
        self.table.number("loraplex_build_info").set(1, process, name, importlib.metadata.version("loraplex"))
        self._lag = self.table.histogram("loraplex_event_loop_lag_seconds").series()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(due := loop.time() + PROBE_INTERVAL_S, self._probe, loop, due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _probe(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self._lag.observe(max(0.0, loop.time() - due_s))
        self.start()
