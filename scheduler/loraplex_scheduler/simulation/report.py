"""The metrics of a run as JSON, there and back."""

import dataclasses
import json
from typing import Any

from loraplex_scheduler.simulation.metrics import Percentiles, RunMetrics


def to_json(metrics: RunMetrics, *, indent: int | None = 1) -> str:
    """Nothing in it depends on the machine or the time of day."""
    return json.dumps(dataclasses.asdict(metrics), indent=indent, sort_keys=True)


def from_json(text: str) -> RunMetrics:
    """Of what ``to_json`` wrote."""
    fields: dict[str, Any] = json.loads(text)
    for name in ("ttft_ms", "itl_ms"):
        fields[name] = Percentiles(**fields[name])
    return RunMetrics(**fields)
