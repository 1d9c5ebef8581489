"""How a request names adapters, and what the names resolve to."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPart:
    """One adapter that a request asks for. Several make a composition; none is the base model."""

    name: str
    version: str = ""
    """Empty (the current one), a version number, or a digest."""
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAdapter:
    """The exact version that a request runs on from its acceptance to its end."""

    name: str
    number: int
    digest: str
    weight: float
