"""Strict JSON from an untrusted source: no duplicate keys, no NaN, no surprise exceptions."""

import json
from typing import Any, NoReturn

from loraplex_contract.errors import InvalidArgument

MALFORMED = "ADAPTER_MALFORMED"


def parse_json_object(data: bytes, *, source: str) -> dict[str, Any]:
    """``data`` as a JSON object.

    Args:
        data: UTF-8 text, already bounded in size by the caller.
        source: what to call it in messages, e.g. ``adapter_config.json``.

    Raises:
        InvalidArgument: not one JSON object, a key twice, NaN or Infinity (reason ADAPTER_MALFORMED).
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        detail = str(error) if isinstance(error, json.JSONDecodeError | _JsonRefused) else type(error).__name__
        raise InvalidArgument(f"{source} is not valid JSON: {detail}", reason=MALFORMED) from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{source} must hold one JSON object", reason=MALFORMED)
    return document


class _JsonRefused(ValueError):
    """Valid for Python's lenient parser, but ambiguous."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _JsonRefused(f"the key {twice[:80]!r} appears twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise _JsonRefused(f"{name} is not a JSON number")
