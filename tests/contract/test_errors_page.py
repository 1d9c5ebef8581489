"""docs/errors.md lists every reason that the code can give, and none that it cannot."""

import re

from tests.contract.test_layout import ROOT, sources

PAGE = (ROOT / "docs" / "errors.md").read_text()
_BEFORE = r"(?:reason=|default_reason(?:: ClassVar\[str\])? = |reason,? = |REASON(?:: Final)? = )"
_GIVEN = re.compile(_BEFORE + r'"([A-Z][A-Z0-9_]+)"')


def documented() -> set[str]:
    return set(re.findall(r"`([A-Z][A-Z0-9_]{3,})`", PAGE))


def given() -> set[str]:
    return {reason for path in sources() for reason in _GIVEN.findall(path.read_text())}


def test_every_reason_in_the_code_is_documented():
    assert len(given()) > 50
    assert given() - documented() == set()


def test_every_documented_reason_stands_in_the_code():
    text = "\n".join(path.read_text() for path in sources())
    assert {reason for reason in documented() if f'"{reason}"' not in text} == set()
