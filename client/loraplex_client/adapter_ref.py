"""Which adapter a request runs on."""

import dataclasses
from collections.abc import Sequence

from loraplex_contract.errors import field_error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """A registered adapter by ``name``, or a folder on the server by ``uri``: exactly one of the two."""

    name: str = ""
    version: str = ""
    """Empty: what the name points at when the request arrives. Else a version number or a digest."""
    scale: float | None = None
    """Multiplies the adapter's own scale; None = 1."""
    uri: str = ""

    @classmethod
    def parse(cls, text: str) -> "AdapterRef":
        """``name`` or ``name@version``."""
        name, separator, version = text.partition("@")
        if not name or (separator and not version):
            raise field_error("adapter", f"{text!r} is neither a name nor name@version")
        return cls(name=name, version=version)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightedAdapter:
    """One part of a composition: the deltas of all parts are added, each times its weight."""

    name: str
    version: str = ""
    weight: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAdapter:
    """What a reference resolved to: this version answered."""

    name: str
    version: int
    digest: str
    weight: float


AdapterChoice = str | AdapterRef | Sequence[WeightedAdapter] | None
"""``"name"``, ``"name@version"``, a reference, a composition, or None for the base model."""
