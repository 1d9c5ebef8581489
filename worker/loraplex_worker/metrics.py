"""Everything that a worker's ``/metrics`` shows; ``metrics_observer`` counts it and ``docs/metrics.md`` lists it."""

from typing import Final

from loraplex_contract.metrics import Kind, MetricSpec, doubling

_STEP_S: Final = doubling(0.0005, 8)
_LOAD_S: Final = doubling(0.001, 64)


def _spec(kind: Kind, name: str, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> MetricSpec:
    return MetricSpec(name=f"loraplex_{name}", kind=kind, help=help, labels=labels, buckets=buckets)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

SPECS: Final = (
    _spec(
        _H,
        "step_seconds",
        "A step of the engine: decode rows only, prefill rows only, or both.",
        "phase",
        buckets=_STEP_S,
    ),
    _spec(
        _C,
        "step_thread_seconds_total",
        "Where the step thread's time went: commands, step, report, idle.",
        "part",
    ),
    _spec(_C, "steps_total", "Steps: base = no adapter, lora = one and nothing else, mixed = the rest.", "rows"),
    _spec(_H, "batch_rows", "Rows of a step.", "kind", buckets=doubling(1, 8192)),
    _spec(_H, "batch_adapters", "Distinct adapters in a step.", buckets=(0, *doubling(1, 1024))),
    _spec(_C, "rows_total", "Rows computed.", "kind"),
    _spec(_C, "engine_tokens_total", "Output tokens that the engine gave."),
    _spec(_C, "prefix_cache_tokens_total", "Tokens of admitted sequences that were not computed but found."),
    _spec(_C, "nonfinite_rows_total", "Sequences that ended because their logits were not finite."),
    _spec(_C, "commands_refused_total", "Commands of the scheduler that could not be carried out.", "reason"),
    _spec(_G, "engine_sequences", "Live sequences, paused ones too."),
    _spec(_G, "engine_pending_commands", "Commands that wait for the step thread."),
    _spec(_G, "engine_pages", "Pages after the last step; the sum is the pool.", "kind"),
    _spec(
        _G,
        "worker_adapters",
        "Versions by tier: device = attached, host = in memory, loading, queued = for a loader.",
        "tier",
    ),
    _spec(_G, "host_cache_bytes", "Of the host tier: used or reserved for loads in flight, and budget.", "kind"),
    _spec(_C, "adapter_hit_total", "Load orders by where the version was: host, or store = it had to be read.", "tier"),
    _spec(_C, "adapter_loads_total", "Versions read from the store.", "result"),
    _spec(_H, "adapter_load_seconds", "From a load order to the version on the device.", buckets=_LOAD_S),
    _spec(_C, "adapter_load_errors_total", "Load orders that failed.", "reason"),
    _spec(_C, "adapter_evictions_total", "Versions dropped from a tier.", "tier"),
    _spec(_G, "link_up", "Whether the stream to the scheduler is up."),
    _spec(_C, "link_losses_total", "Streams to the scheduler that were lost, and attempts that failed."),
    _spec(_G, "link_waiting_frames", "Frames that wait for the scheduler to read."),
    _spec(_G, "lease_left_seconds", "Until the worker stops by itself unless the scheduler answers; 0 without a link."),
)
