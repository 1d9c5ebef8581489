"""Stop strings found across token borders, with as little text held back as correctness allows.

The reference is: read the text character by character; at the first character with which it ends in a stop string, the
sequence is over. Where several end there, the longest counts. The text before it can hold no other stop string.
An Aho-Corasick automaton does this in one step per character; its depth is how much of the text could still become a
stop string, so exactly that much is held back.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Final


@dataclasses.dataclass(slots=True)
class _Node:
    depth: int
    children: dict[str, "_Node"] = dataclasses.field(default_factory=dict)
    fallback: "_Node | None" = None
    """The longest proper suffix of this node's text that is itself a node. None: the root."""
    stop: str = ""
    """The longest stop string that ends here."""


class StopStrings:
    """The compiled stop strings of a request, shared by its sequences."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._root: Final = _Node(depth=0)
        for string in strings:
            self._add(string)
        self._link()
        self.first_chars: Final = frozenset(self._root.children)

    @property
    def root(self) -> _Node:
        return self._root

    def _add(self, string: str) -> None:
        node = self._root
        for char in string:
            node = node.children.setdefault(char, _Node(depth=node.depth + 1))
        node.stop = string

    def _link(self) -> None:
        """Breadth first, so that a node's fallback, which is shorter, is complete when it is needed."""
        queue = deque(self._root.children.values())
        for node in queue:
            node.fallback = self._root
        while queue:
            node = queue.popleft()
            if not node.stop and node.fallback is not None:
                node.stop = node.fallback.stop
            for char, child in node.children.items():
                child.fallback = self.step(node.fallback or self._root, char)
                queue.append(child)

    def step(self, node: _Node, char: str) -> _Node:
        while (following := node.children.get(char)) is None:
            if node.fallback is None:
                return self._root
            node = node.fallback
        return following


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one push lets go."""

    text: str
    stop_string: str | None = None
    """Set when the sequence is over; ``text`` is then the last."""


class StopMatcher:
    """The state of one sequence."""

    __slots__ = ("_held", "_include", "_node", "_stops")

    def __init__(self, stops: StopStrings, *, include_stop_string: bool) -> None:
        self._stops = stops
        self._include = include_stop_string
        self._node = stops.root
        self._held = ""

    def push(self, text: str, *, can_stop: bool = True) -> Release:
        """Takes new text; with ``can_stop`` false a stop string that ends in it is let through."""
        if self._node is self._stops.root and self._stops.first_chars.isdisjoint(text):
            return Release(text=text)
        for position, char in enumerate(text):
            self._node = self._stops.step(self._node, char)
            if self._node.stop:
                if can_stop:
                    return self._cut(self._held + text[: position + 1], self._node.stop)
                self._let_through()
        known = self._held + text
        kept = len(known) - self._node.depth
        self._held = known[kept:]
        return Release(text=known[:kept])

    def _let_through(self) -> None:
        """Holds no more of a stop string that counts for nothing than what another one could begin with."""
        while not self._node.children and self._node.fallback is not None:
            self._node = self._node.fallback

    def flush(self) -> str:
        """At the end of the sequence: what was held back could not become a stop string any more."""
        held, self._held, self._node = self._held, "", self._stops.root
        return held

    def _cut(self, known: str, stop: str) -> Release:
        self._held, self._node = "", self._stops.root
        return Release(text=known if self._include else known[: len(known) - len(stop)], stop_string=stop)
