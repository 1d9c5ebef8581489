"""Everything that an adapter is refused for, told at once, with what is the same in many layers told once."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from loraplex_adapters.refusal import quote
from loraplex_contract.errors import FieldViolation, LoraplexError

_LAYER = re.compile(r"\blayers?[. ](\d{1,9})")
_MAX_LISTED = 64


@dataclasses.dataclass(slots=True)
class _Group:
    """The same about the same module of several layers."""

    subject: str
    """Of the first."""
    problem: str
    layers: list[int]


class Refusals:
    """The first one decides the error's class, reason and metadata."""

    def __init__(self) -> None:
        self._first: LoraplexError | None = None
        self._num_found = 0
        self._groups: dict[tuple[str, str], _Group] = {}

    def __bool__(self) -> bool:
        return self._first is not None

    def add(self, subject: str, problem: str, error: LoraplexError) -> None:
        """
        Args:
            subject: a module, a tensor or a field of adapter_config.json; shown quoted.
            problem: the rest of the sentence that begins with the subject.
            error: what is raised if nothing else is wrong.
        """
        self._first = self._first or error
        self._num_found += 1
        shown = quote(subject)[1:-1]
        key = (_LAYER.sub("layer *", shown), _LAYER.sub("layer *", problem))
        group = self._groups.setdefault(key, _Group(shown, problem, []))
        layer = _LAYER.search(shown)
        if layer is not None:
            group.layers.append(int(layer[1]))

    @contextlib.contextmanager
    def ending(self, subject: str) -> Iterator[None]:
        """What ends the checks inside is told with what they had found before; as of ``subject``, if it names none."""
        try:
            yield
        except LoraplexError as error:
            if self._first is None:
                raise
            for violation in error.violations or (FieldViolation(field=subject, description=error.message),):
                self.add(violation.field, violation.description, error)
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raises the first error with all of them as its violations."""
        if self._first is None:
            return
        error = self._first
        violations = [_violation(group) for group in self._groups.values()]
        if len(violations) > _MAX_LISTED:
            left = len(violations) - _MAX_LISTED
            violations[_MAX_LISTED:] = [FieldViolation(field="...", description=f"and {left} more kinds of refusals")]
        more = f" (and {self._num_found - 1} more)" if self._num_found > 1 else ""
        raise type(error)(
            f"{error.message}{more}", reason=error.reason, metadata=error.metadata, violations=tuple(violations)
        ) from None


def _violation(group: _Group) -> FieldViolation:
    if len(group.layers) < 2:
        return FieldViolation(field=group.subject, description=group.problem)
    layers = f"layers.{{{_ranges(sorted(set(group.layers)))}}}"
    field = _LAYER.sub(lambda _: layers, group.subject, count=1)
    return FieldViolation(field=field, description=_LAYER.sub("layer *", group.problem))


def _ranges(numbers: list[int]) -> str:
    """``0-3,7`` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)
