"""The settings of a frontend process."""

import ipaddress
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from loraplex_contract.metrics_address import MetricsListen
from loraplex_contract.settings import ProcessSettings


class FrontendSettings(ProcessSettings):
    """Where it listens, what it serves, and its bounds."""

    process: ClassVar[str] = "frontend"

    listen: str = "127.0.0.1:50051"
    """Address of the public services. Port 0 picks a free one."""
    admin_listen: str = "127.0.0.1:50061"
    """Address of the operators' services."""
    scheduler: str = "127.0.0.1:50052"
    """Address of the scheduler."""
    model: Path
    """Hugging Face folder of the base model."""
    model_name: str = ""
    """What clients call the model. Empty: the folder's name."""
    store: Path
    """Folder of the adapter store, shared with the workers."""
    adapter_roots: tuple[Path, ...] = ()
    """Folders below which adapters may be registered from file uris. Empty: none."""
    allow_request_uri: bool = False
    """Whether requests may bring adapters by uri, below the same roots."""
    auth_keys_file: Path | None = None
    """TOML or JSON list of token digests with tenant and scopes. Absent: no credentials are asked for."""
    insecure_no_auth: bool = False
    """Listen on addresses other than loopback without asking for credentials."""
    frontend_id: str = Field(default="", max_length=128)
    """Names this frontend to the scheduler and in GetServerInfo. Empty: a new name at every start."""
    max_in_flight: int = Field(default=256, ge=1, le=65_536)
    """Requests that one session may have open."""
    max_open_requests: int = Field(default=4_096, ge=1, le=1_000_000)
    """Requests that this process may have open."""
    max_prompt_bytes: int = Field(default=4 << 20, ge=1, le=15 << 20)
    """UTF-8 bytes of a text prompt, or of all contents of a chat."""
    max_timeout_s: float = Field(default=3_600.0, gt=0, le=86_400)
    """The longest timeout of a request, and the timeout of one that has none."""
    max_stream_bytes: int = Field(default=4 << 20, ge=4_096)
    """Output that waits for a slow reader; past it the stream's requests end SLOW_CONSUMER."""
    max_adapter_bytes: int = Field(default=2 << 30, ge=1)
    """Size of an adapter's safetensors file."""
    max_adapter_rank: int = Field(default=512, ge=1)
    """Rank of an adapter."""
    max_upload_bytes: int = Field(default=8 << 30, ge=1)
    """Announced bytes of all uploads under way, of all frontends on this store together."""
    upload_ttl_s: float = Field(default=3_600.0, gt=0, le=604_800)
    """An upload that nobody goes on with is forgotten after this."""
    heartbeat_s: float = Field(default=5.0, gt=0, le=60)
    """A session hears from the server at least this often."""
    scheduler_grace_s: float = Field(default=2.0, ge=0, le=60)
    """How long a new request waits for a scheduler that is away."""
    drain_grace_s: float = Field(default=10.0, ge=0, le=3_600)
    """How long running requests may go on after SIGTERM."""
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    """Threads for long texts."""
    reflection: bool = True
    """Whether the server describes its services to tools."""
    port_file: Path | None = None
    """JSON file that gets the bound addresses."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    metrics_listen: MetricsListen = ""
    """Address of /metrics: plain HTTP, without credentials, with names of tenants and adapters. Port 0: any free one.
    Empty: none."""
    metrics_max_adapters: int = Field(default=50, ge=1, le=10_000)
    """Pairs of tenant and adapter that have metrics of their own, the busiest; the rest is counted as "other"."""

    @model_validator(mode="after")
    def _check_exposure(self) -> "FrontendSettings":
        if self.auth_keys_file is None and not self.insecure_no_auth:
            for name in ("listen", "admin_listen"):
                if not _is_loopback(getattr(self, name)):
                    raise ValueError(
                        f"{name}={getattr(self, name)} is not a loopback address and there is no auth_keys_file: "
                        "set one, or pass --insecure-no-auth"
                    )
        return self


def _is_loopback(address: str) -> bool:
    """Unix sockets count: the file's permissions guard them."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
