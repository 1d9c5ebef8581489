"""Everything that the scheduler's ``/metrics`` shows; ``metrics_observer`` counts it and ``docs/metrics.md`` lists it.

The ``vllm:`` names are those of vLLM's server, so that dashboards and routers made for it work; the service as a whole
is one engine to them. Times are the scheduler's: from the turn in which it took a request.
"""

from typing import Final

from loraplex_contract.metrics import Kind, MetricSpec, doubling

ENGINE: Final = "0"

_TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS: Final = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))


def _vllm(kind: Kind, name: str, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> MetricSpec:
    return MetricSpec(name=f"vllm:{name}", kind=kind, help=help, labels=labels, buckets=buckets)


def _own(kind: Kind, name: str, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> MetricSpec:
    return MetricSpec(name=f"loraplex_{name}", kind=kind, help=help, labels=labels, buckets=buckets)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

VLLM_SPECS: Final = (
    _vllm(_G, "num_requests_running", "Requests with a sequence in a worker's batch."),
    _vllm(_G, "num_requests_waiting", "Accepted requests with none."),
    _vllm(
        _G,
        "num_requests_waiting_by_reason",
        "The same: deferred = no worker has all their adapters on its device, capacity = the rest.",
        "reason",
    ),
    _vllm(_G, "kv_cache_usage_perc", "Part of the workers' pages, adapters' aside, that holds KV; 1 is all."),
    _vllm(_C, "prompt_tokens_total", "Prompt tokens of the sequences that came to their first token, cached ones too."),
    _vllm(_C, "generation_tokens_total", "Output tokens."),
    _vllm(
        _C,
        "prompt_tokens_cached_total",
        "Tokens that a worker found in its prefix cache.",
    ),
    _vllm(_C, "prefix_cache_queries_total", "Tokens of admissions that were looked up in one."),
    _vllm(_C, "prefix_cache_hits_total", "Of those, the ones that were found."),
    _vllm(_C, "num_preemptions_total", "Sequences that gave up their pages to go on later."),
    _vllm(
        _C,
        "request_success_total",
        "Sequences that ended: stop, length (a limit of tokens, context or time), abort or error.",
        "finished_reason",
    ),
    _vllm(_H, "time_to_first_token_seconds", "From acceptance to the first token.", buckets=_TTFT_S),
    _vllm(_H, "inter_token_latency_seconds", "From one token of a sequence to its next.", buckets=_PER_TOKEN_S),
    _vllm(
        _H,
        "request_time_per_output_token_seconds",
        "Of an ended sequence: mean time between its tokens.",
        buckets=_PER_TOKEN_S,
    ),
    _vllm(_H, "e2e_request_latency_seconds", "From acceptance to the end of a sequence.", buckets=_REQUEST_S),
    _vllm(_H, "request_queue_time_seconds", "From acceptance to the first admission.", buckets=_REQUEST_S),
    _vllm(_H, "request_prefill_time_seconds", "From the first admission to the first token.", buckets=_REQUEST_S),
    _vllm(_H, "request_decode_time_seconds", "From the first token to the end.", buckets=_REQUEST_S),
    _vllm(_H, "request_inference_time_seconds", "From the first admission to the end.", buckets=_REQUEST_S),
    _vllm(_H, "request_prompt_tokens", "Prompt tokens of an ended sequence.", buckets=_TOKENS),
    _vllm(_H, "request_generation_tokens", "Output tokens of an ended sequence.", buckets=_TOKENS),
    _vllm(_H, "request_params_n", "Sequences that an accepted request asked for.", buckets=(1, 2, 5, 10, 20)),
    _vllm(_H, "request_params_max_tokens", "max_tokens of an accepted request, where it gave one.", buckets=_TOKENS),
    _vllm(_H, "iteration_tokens_total", "Rows of a worker's step.", buckets=doubling(1, 16_384)),
    _vllm(_C, "corrupted_requests_total", "Sequences whose logits were not finite."),
    _vllm(_G, "cache_config_info", "Always 1. Page size and the sum of pages.", "block_size", "num_gpu_blocks"),
    _vllm(
        _G,
        "lora_requests_info",
        "Unix time of the scrape. Adapters with running and with waiting requests, comma-separated.",
        *("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
)

OWN_SPECS: Final = (
    _own(_G, "queue_requests", "Requests of which nothing has been admitted yet."),
    _own(_G, "queue_sequences", "Sequences that wait, preempted ones too."),
    _own(_G, "running_requests", "Requests with an admitted sequence."),
    _own(_G, "running_sequences", "Sequences in a worker's batch.", "worker"),
    _own(_G, "starving_sequences", "Of those, the ones that wait for pages to grow.", "worker"),
    _own(_C, "admissions_total", "Sequences put into a batch; a resumed one counts again."),
    _own(_C, "preemptions_total", "Sequences that gave up their pages to go on later."),
    _own(_C, "recomputed_tokens_total", "Tokens given to a worker again after a preemption or a worker's loss."),
    _own(
        _C,
        "scheduler_errors_total",
        "Requests that were rejected and sequences that failed here.",
        *("stage", "reason"),
    ),
    _own(_G, "leases", "Holds of open requests on adapter versions."),
    _own(_G, "adapters", "Registered names.", "state"),
    _own(_G, "adapters_on_worker", "Versions on the device, and on the way there or off it.", "worker", "tier"),
    _own(_C, "adapter_load_orders_total", "Loads that a worker was asked for."),
    _own(_C, "adapter_load_failures_total", "Loads that a worker could not do.", "reason"),
    _own(_C, "adapter_eviction_orders_total", "Evictions that a worker was asked for."),
    _own(
        _C,
        "adapter_lookups_total",
        "Accepted requests: base = no adapter, device = some worker had all of its adapters ready, absent = none had.",
        "found",
    ),
    _own(_G, "pages", "A worker's pages by the scheduler's books; the sum is its pool.", "worker", "kind"),
    _own(_C, "scheduled_steps_total", "Steps that workers reported."),
    _own(_C, "mixed_steps_total", "Of those, with rows of two adapters or of an adapter and the base model."),
    _own(_H, "turn_seconds", "One turn of the scheduler, its answers queued.", buckets=doubling(0.00005, 0.8)),
    _own(_H, "turn_events", "Events that one turn took.", buckets=doubling(1, 512)),
    _own(_G, "links", "Open streams.", "peer"),
    _own(_G, "workers", "Registered workers.", "device"),
    _own(_C, "worker_losses_total", "Registrations that ended; LEFT is the orderly way.", "cause"),
    _own(_G, "term", "The scheduler's term in office: grows with every start on the same registry."),
)
