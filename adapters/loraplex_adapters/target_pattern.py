"""PEFT's regular expressions, run by RE2 so that no adapter can make matching slow.

PEFT uses Python's ``re``. A pattern is taken when both engines compile it and it has none of the few spellings that
they read differently; module names are plain ASCII on one line, on which the remaining differences do not show.
Everything else (look-around, back-references) is refused by name: list the module names instead.
"""

import functools
import re
from typing import Any

import re2

from loraplex_adapters.refusal import malformed, quote, unsupported_feature

_READ_DIFFERENTLY = ("{,", "[:", "[[", "--", "&&", "~~", "||")
"""``x{,3}`` is a repeat in re and literal text in RE2, ``[[:alpha:]]`` the reverse; re warns of the others in sets."""
_MAX_MEMORY_BYTES = 1 << 20


class TargetPattern:
    """One compiled pattern."""

    def __init__(
        self, pattern: str, *, field: str, max_program: int, template: str = "{}", has_groups: bool = False
    ) -> None:
        """Compile ``pattern`` set into ``template``, as PEFT composes it.

        Args:
            field: of adapter_config.json, for messages.
            max_program: RE2 instructions that are allowed; the time of a match grows with them.
            has_groups: ``group_at_start_of`` will be asked; without groups matching is many times faster.

        Raises:
            InvalidArgument: Python's ``re``, and so PEFT, does not take it (ADAPTER_MALFORMED).
            FailedPrecondition: RE2 does not take it, reads it differently, or it is too large
                (ADAPTER_FEATURE_UNSUPPORTED).
        """
        self.text = pattern
        composed = template.replace("{}", pattern)
        if any(spelling in pattern for spelling in _READ_DIFFERENTLY):
            raise _inexpressible(pattern, field)
        _check_python_takes(composed, pattern, field)
        try:
            self._compiled: Any = re2.compile(composed, _options(has_groups))
        except re2.error as error:
            raise _inexpressible(pattern, field) from error
        self.program_size = int(self._compiled.programsize)
        if self.program_size > max_program:
            message = f"{field}: the pattern {quote(pattern)} needs {self.program_size} instructions"
            raise unsupported_feature(field, f"{message}, {max_program} are left; list the module names instead")

    def matches_all_of(self, text: str) -> bool:
        """As ``re.fullmatch``."""
        return self._compiled.fullmatch(text) is not None

    def matches_start_of(self, text: str) -> bool:
        """As ``re.match``."""
        return self._compiled.match(text) is not None

    def group_at_start_of(self, text: str, group: str) -> str | None:
        """The text of a named group after ``re.match``: None without a match, "" where the group took no part."""
        match = self._compiled.match(text)
        return None if match is None else str(match.group(group) or "")


@functools.cache
def _options(has_groups: bool) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    options.never_capture = not has_groups
    return options


def _check_python_takes(composed: str, pattern: str, field: str) -> None:
    try:
        re.compile(composed)
    except (re.error, RecursionError, OverflowError) as error:
        raise malformed(f"{field}: {quote(pattern)} is not a regular expression", field=field) from error


def _inexpressible(pattern: str, field: str) -> Exception:
    message = f"{field}: the pattern {quote(pattern)} needs a feature outside RE2; list the module names instead"
    return unsupported_feature(field, message)
