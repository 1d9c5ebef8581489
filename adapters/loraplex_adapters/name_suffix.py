"""Keys of rank_pattern and alpha_pattern: PEFT reads them as regular expressions that must reach a module name's end.

Most are plain names, and a config may have one for every module. Those are compared without a regular expression, so
that a thousand of them cost little; the others go to RE2 with a common budget.
"""

import re
from collections.abc import Iterable

from loraplex_adapters.limits import Limits
from loraplex_adapters.target_pattern import TargetPattern

_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_]|\\?\.)*[A-Za-z0-9_]")
_TEMPLATE = r"(.*\.)?({})$"


def is_plain(pattern: str) -> bool:
    """Whether a pattern is just a module name, perhaps with escaped dots or ``^`` in front."""
    return _PLAIN.fullmatch(pattern) is not None


class NameSuffix:
    """``(.*\\.)?(name)$`` for a plain name. As in a regular expression, a dot that is not escaped is any character."""

    def __init__(self, pattern: str) -> None:
        assert is_plain(pattern)
        self.text = pattern
        self._is_whole_name = pattern.startswith("^")
        name = pattern.removeprefix("^")
        self._tail = name.rpartition(".")[2]
        self._chars = tuple(None if piece == "." else piece[-1] for piece in re.findall(r"\\?.", name))

    def matches(self, path: str) -> bool:
        """Whether the pattern matches a module's full name."""
        start = len(path) - len(self._chars)
        if start < 0 or not path.endswith(self._tail):
            return False
        if start > 0 and (self._is_whole_name or path[start - 1] != "."):
            return False
        return all(char is None or char == actual for char, actual in zip(self._chars, path[start:], strict=True))


class RegexSuffix:
    """The same for a real regular expression."""

    def __init__(self, pattern: str, *, field: str, max_program: int) -> None:
        """Compile it; raises as ``TargetPattern``."""
        self.text = pattern
        self._pattern = TargetPattern(pattern, field=field, max_program=max_program, template=_TEMPLATE)
        self.program_size = self._pattern.program_size

    def matches(self, path: str) -> bool:
        """Whether the pattern matches a module's full name."""
        return self._pattern.matches_start_of(path)


def compile_suffixes(patterns: Iterable[str], *, field: str, limits: Limits) -> list[NameSuffix | RegexSuffix]:
    """Compile all keys of one field, in order; raises as ``TargetPattern``."""
    compiled: list[NameSuffix | RegexSuffix] = []
    program_left = limits.max_regex_program
    for pattern in patterns:
        if is_plain(pattern):
            compiled.append(NameSuffix(pattern))
            continue
        suffix = RegexSuffix(pattern, field=field, max_program=program_left)
        program_left -= suffix.program_size
        compiled.append(suffix)
    return compiled
