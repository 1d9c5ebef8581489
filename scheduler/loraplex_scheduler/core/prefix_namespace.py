"""Who shares prefixes with whom."""

import hashlib

from loraplex_scheduler.core.config import CoreConfig

_TENANT = b"loraplex tenant's prefixes"
_BASE = b"loraplex base model's prefixes"


def prefix_namespace(config: CoreConfig, tenant: str, *, is_base: bool) -> bytes:
    """What a worker tells prefixes apart by, besides adapters and tokens. Empty: the request shares nothing.

    A tenant shares with itself alone: a hit is faster, so it would tell one tenant what another has asked. Without the
    scheduler's secret nobody can work a namespace out.

    Args:
        config: its secret, and whether all tenants share what the base model computes.
        tenant: whose request it is.
        is_base: whether it uses no adapter.
    """
    if not config.prefix_secret:
        return b""
    if is_base and config.share_base_prefixes:
        return _keyed(config.prefix_secret, _BASE)
    return _keyed(config.prefix_secret, _TENANT + tenant.encode())


def _keyed(secret: bytes, text: bytes) -> bytes:
    return hashlib.sha256(len(secret).to_bytes(4, "little") + secret + text).digest()
