"""Gathers everything that is wrong with a request, so that the caller hears all of it at once."""

from collections.abc import Mapping, Sized
from typing import Any, Final, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from loraplex_contract.errors import FieldViolation, InvalidArgument
from loraplex_frontend.request_limits import MAX_LABEL_BYTES, MAX_LABELS

_MAX_LISTED: Final = 64
"""A request can have thousands of bad entries; the answer stays small."""


class Violations:
    """The list so far. The first violation gives the error its reason and its figures."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []
        self._num_found = 0
        self._reason = ""
        self._metadata: dict[str, str] = {}

    def add(self, field: str, description: str, reason: str = "FIELD_INVALID", **metadata: object) -> None:
        if not self._found:
            self._reason, self._metadata = reason, {key: str(value) for key, value in metadata.items()}
        self._num_found += 1
        if len(self._found) < _MAX_LISTED:
            self._found.append(FieldViolation(field=field, description=description))

    def raise_if_any(self) -> None:
        """Raises InvalidArgument."""
        if not self._found:
            return
        first, num_others = self._found[0], self._num_found - 1
        more = f" (and {num_others} more)" if num_others else ""
        raise InvalidArgument(
            f"{first.field}: {first.description}{more}",
            reason=self._reason,
            metadata=self._metadata,
            violations=tuple(self._found),
        )

    # --- checks that many fields share ---

    def in_range(
        self,
        field: str,
        value: float,
        least: float,
        most: float,
        *,
        reason: str = "FIELD_INVALID",
        is_open: bool = False,
    ) -> bool:
        """``least <= value <= most``, or ``least < value`` if ``is_open``; NaN is outside."""
        inside = (least < value if is_open else least <= value) and value <= most
        if not inside:
            bound = f"above {least:g} and at most {most:g}" if is_open else f"{least:g} to {most:g}"
            self.add(field, f"is {value:g}, must be {bound}", reason)
        return inside

    def at_most(self, field: str, items: Sized, most: int, *, reason: str = "FIELD_INVALID") -> bool:
        """A bound on how many there are, checked before anybody walks through them."""
        if len(items) > most:
            self.add(field, f"has {len(items)} entries, the limit is {most}", reason)
            return False
        return True

    def duration(self, field: str, value: Duration, most_s: float, *, reason: str = "FIELD_INVALID") -> float | None:
        """Seconds, above 0 and at most ``most_s``."""
        seconds = value.seconds + value.nanos / 1e9
        is_formed = abs(value.nanos) < 1_000_000_000 and value.seconds * value.nanos >= 0
        if not is_formed:
            self.add(field, "is not a valid duration: nanos out of range or of another sign than seconds", reason)
            return None
        return seconds if self.in_range(field, seconds, 0, most_s, is_open=True, reason=reason) else None

    def labels(self, field: str, labels: Mapping[str, str]) -> None:
        if not self.at_most(field, labels, MAX_LABELS):
            return
        for key, value in labels.items():
            if len(key.encode()) > MAX_LABEL_BYTES or len(value.encode()) > MAX_LABEL_BYTES or not key:
                self.add(field, f"keys must have 1 to {MAX_LABEL_BYTES} bytes and values at most {MAX_LABEL_BYTES}")
                return

    def known_fields_only(self, field: str, message: Message) -> None:
        """A field that this server does not know would change the answer if it were known: it cannot be left out."""
        numbers = sorted({unknown.field_number for unknown in cast(Any, UnknownFieldSet(message))})
        if numbers:
            listed = ", ".join(map(str, numbers[:8]))
            self.add(field, f"has fields that this server does not know (numbers {listed})", "FIELD_UNKNOWN")
