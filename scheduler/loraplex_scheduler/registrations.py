"""Registrations that are under way or were refused: seen by others, never written to disk.

A name that the registry knows is not here: it keeps its state while a next version is fetched.
"""

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Final

from loraplex_contract.errors import LoraplexError, Unavailable

MAX_REGISTRATIONS: Final = 1024
"""The oldest gives way."""
FAILED_KEPT_NS: Final = 600 * 1_000_000_000
SILENT_NS: Final = 900 * 1_000_000_000
"""An attempt that says nothing for so long has died with its frontend."""


class Progress(enum.Enum):
    PENDING = "PENDING"
    FETCHING = "FETCHING"
    VALIDATING = "VALIDATING"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What is known of a name without a version."""

    tenant: str
    name: str
    attempt_id: str
    state: Progress
    revision: int
    began_ns: int
    """Wall clock."""
    updated_ns: int
    error: LoraplexError | None = None
    """With FAILED."""


class Registrations:
    """At most ``MAX_REGISTRATIONS``, by tenant and name."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], Registration] = OrderedDict()

    def get(self, tenant: str, name: str) -> Registration | None:
        self._forget_old()
        return self._entries.get((tenant, name))

    def put(self, registration: Registration) -> None:
        key = (registration.tenant, registration.name)
        known = self._entries.get(key)
        if known is not None and known.attempt_id == registration.attempt_id:
            registration = dataclasses.replace(registration, began_ns=known.began_ns)
        self._entries[key] = registration
        self._entries.move_to_end(key)
        while len(self._entries) > MAX_REGISTRATIONS:
            self._entries.popitem(last=False)

    def discard(self, tenant: str, name: str) -> None:
        self._entries.pop((tenant, name), None)

    def between(
        self, tenant: str, *, after: str, name_prefix: str, states: Collection[Progress], labels: Mapping[str, str]
    ) -> list[Registration]:
        """By name, those that a page's filters let through."""
        self._forget_old()
        if labels:
            return []
        found = [
            entry
            for (owner, name), entry in self._entries.items()
            if owner == tenant and name > after and name.startswith(name_prefix) and entry.state in states
        ]
        return sorted(found, key=lambda entry: entry.name)

    def _forget_old(self) -> None:
        """The oldest are in front."""
        now_ns = self._clock()
        for key, entry in list(self._entries.items()):
            age_ns = now_ns - entry.updated_ns
            if age_ns <= FAILED_KEPT_NS:
                return
            if entry.state is Progress.FAILED:
                del self._entries[key]
            elif age_ns > SILENT_NS:
                message = "the server that fetched this adapter went away: register it again"
                error = Unavailable(message, reason="REGISTRATION_LOST")
                self._entries[key] = dataclasses.replace(entry, state=Progress.FAILED, error=error, updated_ns=now_ns)
                self._entries.move_to_end(key)
