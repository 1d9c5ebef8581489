"""What an operator may set for the scheduler."""

import secrets
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliImplicitFlag

from loraplex_contract.metrics_address import MetricsListen
from loraplex_contract.settings import ProcessSettings
from loraplex_scheduler.core.config import CoreConfig

NS_PER_S = 1_000_000_000


class SchedulerSettings(ProcessSettings):
    """The scheduler: names and versions of adapters, the queue, batch formation. Touches no file of an adapter."""

    process: ClassVar[str] = "scheduler"

    listen: str = "127.0.0.1:50052"
    """Address for frontends and workers. Port 0: any free one, see --port-file."""
    state_dir: Path = Path(".loraplex/scheduler")
    """Where the registry is, unless --registry-url names a database."""
    registry_url: str = ""
    """SQLAlchemy URL of the registry, e.g. postgresql+psycopg://...; empty: SQLite in --state-dir."""
    port_file: Path | None = None
    """Written as JSON once the address is bound."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe lines that are written."""
    metrics_listen: MetricsListen = ""
    """Address of /metrics: plain HTTP, without credentials, with adapters' names. Port 0: any free one. Empty: none."""
    model_name: str = "base"
    """What the metrics call the model."""
    heartbeat_s: float = Field(default=1.0, gt=0, le=60)
    """How often peers hear from the scheduler, and workers report."""
    lease_ttl_s: float = Field(default=5.0, gt=0, le=600)
    """A worker that was not heard of for so long is lost, and stops by itself."""
    stall_s: float = Field(default=60.0, gt=0, le=3600)
    """A worker with work whose step loop has not turned for so long is lost, however alive its stream is."""
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=600)
    """How long running streams may go on after SIGTERM."""
    max_peer_frames: int = Field(default=4096, ge=16)
    """Frames that wait for a peer that does not read; past it the peer is cut off."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Longest queue; one more request is refused QUEUE_FULL."""
    max_inflight_per_tenant: int = Field(default=512, ge=1)
    """Queued and running requests of one tenant; one more is refused TENANT_QUOTA."""
    policy: Literal["fcfs", "slora", "vllm-skip", "loraplex"] = "loraplex"
    """Whose turn it is. The others are there for comparison."""
    max_adapters_per_step: int = Field(default=0, ge=0)
    """Distinct adapters in a worker's batch. 0: as many as memory holds."""
    max_step_tokens: int = Field(default=0, ge=0)
    """Rows of one step. 0: each worker's own setting."""
    max_overtake_s: float = Field(default=2.0, gt=0)
    """How long a request that could run but for room may be overtaken."""
    no_worker_grace_s: float = Field(default=10.0, gt=0)
    """How long requests wait while no worker is connected."""
    adapter_load_timeout_s: float = Field(default=60.0, gt=0)
    """A worker gives up loading an adapter after this."""

    share_base_prefixes: CliImplicitFlag[bool] = False
    """Let tenants share the prefix cache for requests without adapters. How fast an answer begins then tells a tenant
    whether somebody has sent the same beginning before."""

    def core_config(self) -> CoreConfig:
        return CoreConfig(
            policy=self.policy,
            max_queued_requests=self.max_queued_requests,
            max_inflight_per_tenant=self.max_inflight_per_tenant,
            max_adapters_per_step=self.max_adapters_per_step,
            max_step_tokens=self.max_step_tokens,
            max_overtake_ns=int(self.max_overtake_s * NS_PER_S),
            no_worker_grace_ns=int(self.no_worker_grace_s * NS_PER_S),
            load_timeout_ns=int(self.adapter_load_timeout_s * NS_PER_S),
            prefix_secret=secrets.token_bytes(32),
            share_base_prefixes=self.share_base_prefixes,
            seed_salt=secrets.randbits(64),
        )

    def database_url(self) -> str:
        return self.registry_url or f"sqlite:///{(self.state_dir / 'registry.sqlite').absolute()}"
