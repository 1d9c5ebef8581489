"""One gRPC channel to a server."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

from loraplex_contract.channel import CLIENT_OPTIONS

DEFAULT_TARGET: Final = "127.0.0.1:50051"

# Generation is not in this list: only calls that change nothing are repeated behind the caller's back.
_IDEMPOTENT: Final = (
    {"service": "loraplex.v1.ModelService"},
    {"service": "loraplex.v1.TokenizerService"},
    {"service": "loraplex.v1.AdapterService", "method": "GetAdapter"},
    {"service": "loraplex.v1.AdapterService", "method": "ListAdapters"},
    {"service": "loraplex.admin.v1.ClusterService", "method": "GetCluster"},
)
_RETRY: Final = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG: Final = json.dumps({"methodConfig": [{"name": list(_IDEMPOTENT), "retryPolicy": _RETRY}]})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to trust the server, and who we are to it. All PEM; None = the system's roots, no client certificate."""

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None

    @classmethod
    def from_files(cls, *, ca: Path | None = None, key: Path | None = None, certificate: Path | None = None) -> "Tls":
        """Reads the files that are given."""
        read = [path.read_bytes() if path else None for path in (ca, key, certificate)]
        return cls(root_certificates=read[0], private_key=read[1], certificate_chain=read[2])


def open_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    """Must be called on the event loop that will use it."""
    options: list[tuple[str, int | str]] = [*CLIENT_OPTIONS, ("grpc.service_config", _SERVICE_CONFIG)]
    if _is_local(target):
        # A proxy set for the internet must not catch calls to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def bearer(token: str | None) -> Sequence[tuple[str, str]]:
    """The metadata that carries the credential."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _is_local(target: str) -> bool:
    return target.startswith(("127.", "localhost:", "[::1]", "unix:"))
