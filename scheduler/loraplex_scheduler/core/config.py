"""What an operator may set for the core. Every bound that its docstrings speak of is here."""

import dataclasses
from collections.abc import Mapping

SECOND_NS = 1_000_000_000
_AT_LEAST_ONE = (
    "max_queued_requests",
    "max_inflight_per_tenant",
    "max_loads_in_flight",
    "load_timeout_ns",
    "max_lookahead",
    "num_recent_admissions",
    "fairness_quantum",
    "max_replicas",
    "max_worker_losses",
    "max_refusals",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Checked once, at the start."""

    policy: str = "loraplex"
    """Whose turn it is: one of ``policies.POLICY_NAMES``."""
    max_queued_requests: int = 1024
    """Requests of which no sequence has been admitted yet; one more is refused QUEUE_FULL."""
    max_inflight_per_tenant: int = 512
    """Queued and running requests; one more is refused TENANT_QUOTA."""
    grant_tokens: int = 64
    """Output tokens that a sequence's pages are reserved for beyond what it has produced."""
    grant_low_tokens: int = 32
    """A grant with fewer tokens left is extended. It hides the round trip to the worker: 32 steps."""
    admission_watermark: float = 0.02
    """Part of a worker's pool that an admission leaves free for the running sequences to grow, unless none runs."""
    max_overtake_ns: int = 2 * SECOND_NS
    """How long a sequence may be overtaken by others of less right. The worst wait is in docs/architecture.md."""
    max_lookahead: int = 8
    """Sequences that do not fit and may be passed over in one look at a worker."""
    fairness_quantum: float = 512.0
    """Service counters closer than this count as equal where deadlines and clustering choose."""
    fairness_burst: float = 2048.0
    """Service that a tenant, or an adapter, which returns from idle may be behind those who waited all the time."""
    prefill_cost: float = 1.0
    """Of a prompt token that was computed, in units of service."""
    decode_cost: float = 2.0
    """Of an output token."""
    tenant_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Shares of the service; 1 for those that are not named."""
    preemption_hysteresis_ns: int = SECOND_NS // 2
    """A sequence that gave way to a better class once does so again only after running for this long."""
    fair_reserve: float = 1 / 16
    """Part of a worker's slots and pages that a tenant above its share leaves to others, if any came lately."""
    fair_preemption_cost: float = 0.02
    """Part of the tokens computed that may be computed twice so that tenants below their share need not wait."""
    fair_preemption_credit: int = 32_768
    """The most tokens of that kind that are saved up."""
    num_recent_admissions: int = 1024
    """Admissions by which it is told who is about."""
    max_pages_ahead: float = 0.25
    """Part of a worker's pool for adapters that are loaded before anything of theirs runs. One may always be."""
    max_replicas: int = 4
    """Workers that hold one adapter at a time because of its load."""
    replica_wait_ns: int = SECOND_NS // 2
    """An adapter whose first sequence has waited for this long gets one more worker, if one is clearly less loaded."""
    replica_cooldown_ns: int = 30 * SECOND_NS
    """Since its last growth, before an adapter that nothing waits for has one worker less."""
    slo_margin: float = 1.0
    """A request is refused early if its predicted time to the first token is longer than allowed by this part of it.
    The prediction knows nothing of those before it that will give up, or are longer: it errs on the long side."""
    deadline_token_ns: int = 10_000_000
    """For each token that a request may need its deadline counts as this much later: more short ones make theirs."""
    max_adapters_per_step: int = 0
    """Distinct adapters among a worker's admitted sequences. 0 = as many as memory holds."""
    max_step_tokens: int = 0
    """Rows of a worker's step, decode and prefill together. 0 = each worker's own setting."""
    max_loads_in_flight: int = 16
    """Adapter loads that one worker is asked for at a time."""
    load_timeout_ns: int = 60 * SECOND_NS
    """A worker gives up a load after this; one that has not answered after twice as long is fenced."""
    max_load_attempts: int = 3
    """Loads that failed for want of room or time on one worker before the waiting requests are told."""
    load_backoff_ns: int = SECOND_NS
    """After the first failed load on a worker; doubles with each further one."""
    max_load_backoff_ns: int = 60 * SECOND_NS
    no_worker_grace_ns: int = 10 * SECOND_NS
    """How long requests wait for a worker while none is connected."""
    max_worker_losses: int = 2
    """Workers lost between a request's admission there and its next token before it is taken for the cause."""
    max_refusals: int = 3
    """Sequence commands that a worker may refuse before its books are taken to be wrong beyond repair."""
    prefix_secret: bytes = b""
    """Keys the namespaces of the prefix caches. The shell draws one at each start. Empty: no prefix is kept."""
    share_base_prefixes: bool = False
    """Whether tenants share what the base model computes without adapters."""
    seed_salt: int = 0
    """Mixed into the seeds of requests that bring none. The shell draws one at each start."""

    def __post_init__(self) -> None:
        if not 0 <= self.grant_low_tokens < self.grant_tokens:
            given = f"grant_low_tokens={self.grant_low_tokens}, grant_tokens={self.grant_tokens}"
            raise ValueError(f"{given}: the first must be at least 0 and below the second")
        if not 0 <= self.admission_watermark < 1:
            raise ValueError(f"admission_watermark={self.admission_watermark} must be in [0, 1)")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"tenant_weights: {weight} of {tenant!r} must be above 0 and finite")
