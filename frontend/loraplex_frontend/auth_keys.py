"""The operator's list of tokens: their SHA-256, never the tokens themselves.

TOML, or JSON of the same shape::

    [[keys]]
    sha256 = "…64 hex digits…"      # printf %s "$TOKEN" | sha256sum
    tenant = "acme"
    scopes = ["inference.submit", "models.read", "adapters.read", "adapters.write"]
"""

import hashlib
import hmac
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Self

from loraplex_contract.ids import is_digest
from loraplex_frontend.principal import ALL_SCOPES, Principal

MAX_TOKEN_BYTES: Final = 4_096
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class AuthKeysError(ValueError):
    """The file is missing or malformed; the message says where."""


class AuthKeys:
    """Looks tokens up. Every entry is compared, each in constant time, so that timing tells nothing."""

    def __init__(self, entries: list[tuple[bytes, Principal]]) -> None:
        self._entries = entries

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AuthKeysError."""
        try:
            text = path.read_text(encoding="utf-8")
            document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise AuthKeysError(f"auth keys file: {error}") from None
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list) or set(document) != {"keys"} or not entries:
            raise AuthKeysError("auth keys file: needs a list 'keys' with at least one entry, and nothing else")
        return cls([_entry(number, entry) for number, entry in enumerate(entries)])

    def principal_of(self, token: str) -> Principal | None:
        """None for a token that is not listed."""
        data = token.encode()
        if len(data) > MAX_TOKEN_BYTES:
            return None
        digest = hashlib.sha256(data).digest()
        found = None
        for known, principal in self._entries:
            if hmac.compare_digest(known, digest):
                found = principal
        return found


def _entry(number: int, entry: Any) -> tuple[bytes, Principal]:
    where = f"auth keys file: keys[{number}]"
    if not isinstance(entry, dict) or set(entry) != {"sha256", "tenant", "scopes"}:
        raise AuthKeysError(f"{where}: needs exactly sha256, tenant and scopes")
    digest, tenant, scopes = entry["sha256"], entry["tenant"], entry["scopes"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise AuthKeysError(f"{where}.sha256: must have 64 lower-case hex digits")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise AuthKeysError(f"{where}.tenant: must have 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise AuthKeysError(f"{where}.scopes: must be a list of strings")
    if unknown := sorted(set(scopes) - ALL_SCOPES):
        raise AuthKeysError(f"{where}.scopes: unknown {unknown}, known: {sorted(ALL_SCOPES)}")
    return bytes.fromhex(digest), Principal(tenant=tenant, scopes=frozenset(scopes))
