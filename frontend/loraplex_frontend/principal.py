"""Who is calling, as the credential says; never what a message claims."""

import contextvars
import dataclasses
from typing import Final

from loraplex_contract.ids import DEFAULT_TENANT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    tenant: str
    scopes: frozenset[str]


ALL_SCOPES: Final = frozenset({"inference.submit", "models.read", "adapters.read", "adapters.write", "cluster.admin"})
NOBODY: Final = Principal(tenant=DEFAULT_TENANT, scopes=frozenset())

_current: contextvars.ContextVar[Principal] = contextvars.ContextVar("principal", default=NOBODY)


def set_principal(principal: Principal) -> None:
    """For the rest of the task that handles the call, and the tasks it starts."""
    _current.set(principal)


def current_tenant() -> str:
    return _current.get().tenant
