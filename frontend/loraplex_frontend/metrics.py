"""Everything that a frontend's ``/metrics`` shows; ``docs/metrics.md`` lists it.

It counts what clients were told. Times are from the moment at which a request was read off its stream.
"""

from typing import Final

from loraplex_contract.metrics import Kind, MetricSpec, doubling

BASE: Final = "(base)"
"""Label of requests without an adapter. No adapter can have such a name."""
UNRESOLVED: Final = "(none)"
"""Of requests that ended before their adapter was looked up: what a client made up is no label."""

_LATENCY_S: Final = doubling(0.001, 128)


def _spec(kind: Kind, name: str, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> MetricSpec:
    return MetricSpec(name=f"loraplex_{name}", kind=kind, help=help, labels=labels, buckets=buckets)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_STATE: Final = "adapter_state"

SPECS: Final = (
    _spec(_C, "requests_received_total", "Requests for generation that were read, good or bad."),
    _spec(
        _C,
        "requests_total",
        "Of those, the ones that are over: the code and the reason that the client got, OK if it went well.",
        *("tenant", "adapter", "code", "reason"),
    ),
    _spec(_C, "sequences_total", "Sequences that ended, by the reason in their finish.", "finish_reason"),
    _spec(_C, "tokens_total", "Of requests that are over: prompt or output.", *("tenant", "adapter", "kind")),
    _spec(
        _H,
        "ttft_seconds",
        "To the first token: hot = adapter on the device, cold = it was loaded first, base = none, unknown = cut off.",
        _STATE,
        buckets=_LATENCY_S,
    ),
    _spec(_H, "itl_seconds", "From one token of a sequence to its next.", buckets=_LATENCY_S),
    _spec(_H, "e2e_seconds", "To the end of the request.", _STATE, buckets=_LATENCY_S),
    _spec(_H, "queue_seconds", "In the scheduler's queue, of its first sequence to end.", _STATE, buckets=_LATENCY_S),
    _spec(_H, "prepare_seconds", "Checks, template, tokeniser: until the scheduler was asked.", buckets=_LATENCY_S),
    _spec(_G, "open_requests", "Requests that are not over: preparing or at the scheduler.", "phase"),
    _spec(_G, "streams", "Calls and sessions that generate."),
    _spec(_C, "rpcs_total", "Calls of any service that are over.", *("method", "code")),
    _spec(_C, "rpc_errors_total", "Of those, the ones that ended with an error of ours.", *("method", "reason")),
    _spec(_H, "rpc_seconds", "How long they took; a session's is its whole life.", "method", buckets=_LATENCY_S),
    _spec(_G, "link_up", "Whether the stream to the scheduler is up."),
    _spec(_C, "link_losses_total", "Streams to the scheduler that were lost, and attempts that failed."),
    _spec(_G, "ready_workers", "Workers that the scheduler last spoke of."),
)
