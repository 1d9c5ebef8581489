"""What an operator may set for the core. Every bound that its docstrings speak of is here."""

import dataclasses

SECOND_NS = 1_000_000_000


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
    """How long an eligible sequence may be overtaken. See ``policy.FirstComeFirstServed`` for the worst wait."""
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
    max_worker_losses: int = 3
    """Workers that may be lost under one request before it is taken for the cause."""
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
        for name in ("max_queued_requests", "max_inflight_per_tenant", "max_loads_in_flight", "load_timeout_ns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
