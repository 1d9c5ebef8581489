"""The settings of a frontend process."""

import ipaddress
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from loraplex_adapters.limits import Limits
from loraplex_contract.metrics_address import MetricsListen
from loraplex_contract.settings import ProcessSettings
from loraplex_frontend.sources.allow_list import AllowList
from loraplex_frontend.sources.remote_sources import RemoteSettings
from loraplex_frontend.sources.source_limits import SourceLimits
from loraplex_frontend.uploads.upload_store import CONFIG_NAME, WEIGHTS_NAME


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
    adapter_sources: tuple[str, ...] = ()
    """Prefixes of uris (hf, s3, gs, az, http, https) that adapters may be registered from. Empty: none."""
    adapter_source_private_hosts: tuple[str, ...] = ()
    """Hosts of http sources that may be loopback or private addresses. Link-local ones never are."""
    max_fetches: int = Field(default=4, ge=1, le=256)
    """Adapters that are fetched at once, one fewer for one tenant; each takes up to max_adapter_bytes of disk."""
    fetch_timeout_s: float = Field(default=600.0, gt=0, le=800)
    """The longest that fetching one adapter takes, whatever the source does."""
    fetch_connect_timeout_s: float = Field(default=5.0, gt=0, le=120)
    """To reach one host of a source."""
    fetch_read_timeout_s: float = Field(default=20.0, gt=0, le=600)
    """A source that is silent for longer is given up."""
    fetch_min_bytes_per_s: int = Field(default=16_384, ge=1)
    """A source that sends less, over half a minute, is given up."""
    hf_endpoint: str = Field(default="https://huggingface.co", pattern=r"^https?://[^/?#@]+(/[^?#@]*)?$")
    """The hub behind hf:// uris, or a mirror of it."""
    hf_token_file: Path | None = None
    """Credential for the hub; sent to hf_endpoint alone."""
    hf_redirect_hosts: tuple[str, ...] = ("*.huggingface.co", "*.hf.co")
    """Patterns of hosts that the hub may redirect to."""
    s3_endpoint: str = ""
    """Address of the S3 service. Empty: what the AWS environment variables say. Credentials are theirs too."""
    gs_endpoint: str = ""
    """Address of Google Cloud Storage. Empty: Google's. Credentials are those of its environment."""
    az_endpoint: str = ""
    """Address of Azure Blob Storage. Empty: what the Azure environment variables say. Credentials are theirs too."""
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

    @field_validator("adapter_sources")
    @classmethod
    def _check_sources(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        AllowList(prefixes)
        return prefixes

    def remote_sources(self, limits: Limits) -> RemoteSettings:
        """Raises OSError for a token file that cannot be read."""
        return RemoteSettings(
            allowed=AllowList(self.adapter_sources),
            private_hosts=frozenset(host.lower() for host in self.adapter_source_private_hosts),
            max_fetches=self.max_fetches,
            max_file_bytes={CONFIG_NAME: limits.max_config_bytes, WEIGHTS_NAME: limits.max_file_bytes},
            limits=SourceLimits(
                connect_s=self.fetch_connect_timeout_s,
                read_s=self.fetch_read_timeout_s,
                total_s=self.fetch_timeout_s,
                min_bytes_per_s=self.fetch_min_bytes_per_s,
            ),
            hf_endpoint=self.hf_endpoint,
            hf_token=self.hf_token_file.read_text().strip() if self.hf_token_file else "",
            hf_redirect_hosts=self.hf_redirect_hosts,
            s3_endpoint=self.s3_endpoint,
            gs_endpoint=self.gs_endpoint,
            az_endpoint=self.az_endpoint,
        )

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
