"""One message of a watch."""

import dataclasses

from loraplex_client.adapter import Adapter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChanges:
    """What has changed; empty now and then, so that a quiet watch can be told from a dead one."""

    revision: int
    """To go on from with ``watch_adapters(from_revision=...)``, once ``is_list_complete`` was seen."""
    adapters: tuple[Adapter, ...]
    """As in a list. A name that has gone comes once, as DELETED."""
    is_list_complete: bool
    """The list is over: what follows are changes. True once."""
