"""Which version each name pointed at and when, and what a recorded stream may therefore have said."""

import dataclasses
import enum
from collections.abc import Sequence

from tests.faults.history import History, Started, Tokens
from tests.lifecycle.watermark import BASE_TOKEN

COMPLETE = "FINISH_REASON_MAX_TOKENS"


class Fault(enum.Enum):
    """A way in which a stream can be wrong."""

    NOT_COMPLETE = "it ended otherwise than asked for, or not at all"
    NUM_TOKENS = "more, fewer or other indexes than asked for"
    NOT_RESOLVED = "it did not say once what it resolved"
    OTHER_NAME = "it resolved another name"
    UNKNOWN_VERSION = "it resolved a digest that the name never had"
    VERSION_OUT_OF_TIME = "it resolved a version that the name did not point at while the request arrived"
    FOREIGN_TOKEN = "a token that is not its version's"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of one name, from when it was asked for until the next was there."""

    name: str
    digest: str
    token: int
    asked_ns: int
    """Monotonic. Before it nobody can have resolved it."""
    replaced_ns: int | None
    """When the next one was acknowledged: who submits later must not resolve this one. None: it stays."""


class Ledger:
    """The versions of all names, written down by the one who updates them."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], Version] = {}
        self._current: dict[str, Version] = {}

    def point(self, name: str, *, digest: str, token: int, asked_ns: int, acknowledged_ns: int) -> None:
        """A name points at a version that it never had."""
        old = self._current.get(name)
        if old is not None:
            self._versions[name, old.digest] = dataclasses.replace(old, replaced_ns=acknowledged_ns)
        assert (name, digest) not in self._versions, digest
        version = Version(name=name, digest=digest, token=token, asked_ns=asked_ns, replaced_ns=None)
        self._versions[name, digest] = self._current[name] = version

    def faults(self, history: History) -> frozenset[Fault]:
        """Everything wrong with one stream; empty where its output is exactly one version's."""
        found = set()
        asked = history.submission
        if history.terminal is None or history.terminal.reason != COMPLETE:
            found.add(Fault.NOT_COMPLETE)
        indexes = [
            index
            for frame in history.frames
            if isinstance(frame, Tokens)
            for index in range(frame.first_token, frame.first_token + len(frame.token_ids))
        ]
        if indexes != list(range(asked.max_tokens)):
            found.add(Fault.NUM_TOKENS)
        starts = [frame for frame in history.frames if isinstance(frame, Started)]
        if len(starts) != 1:
            return frozenset(found | {Fault.NOT_RESOLVED})
        return frozenset(found | self._resolution_faults(history, starts[0]))

    def _resolution_faults(self, history: History, start: Started) -> set[Fault]:
        name = history.submission.adapter
        if [part for part, _ in start.adapters] != ([] if name is None else [name]):
            return {Fault.OTHER_NAME}
        if name is None:
            return {Fault.FOREIGN_TOKEN} if set(history.token_ids) - {BASE_TOKEN} else set()
        version = self._versions.get((name, start.adapters[0][1]))
        if version is None:
            return {Fault.UNKNOWN_VERSION}
        found = {Fault.FOREIGN_TOKEN} if set(history.token_ids) - {version.token} else set()
        is_gone = version.replaced_ns is not None and version.replaced_ns < history.submitted_ns
        if is_gone or version.asked_ns > start.at_ns:
            found.add(Fault.VERSION_OUT_OF_TIME)
        return found

    def assert_clean(self, histories: Sequence[History]) -> None:
        """Raises AssertionError that counts the faults and shows the first."""
        broken = [(history, found) for history in histories if (found := self.faults(history))]
        if broken:
            history, found = broken[0]
            raise AssertionError(f"{len(broken)} of {len(histories)} streams are wrong, first: {found} {history}")
