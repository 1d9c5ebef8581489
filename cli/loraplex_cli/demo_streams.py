"""Several growing answers on one screen."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue", "red")
LINE_CHARACTERS: Final = 24
"""A piece of this length is worth a line of its own, where lines cannot grow."""


class Board(Protocol):
    """Takes the pieces of each named answer as they come."""

    def add(self, name: str, text: str) -> None: ...

    def end(self, name: str, why: str) -> None: ...


@contextmanager
def board(names: Sequence[str], console: Console) -> Iterator[Board]:
    """Growing coloured lines on a terminal, interleaved plain ones elsewhere."""
    if not console.is_terminal:
        yield _PlainBoard(names, console)
        return
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        yield _LiveBoard(names, live)


class _PlainBoard:
    """A line for each piece: what belongs together is told by the name in front."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self._pending = dict.fromkeys(names, "")
        self._width = max(len(name) for name in names)
        self._console = console

    def add(self, name: str, text: str) -> None:
        self._pending[name] += text
        if len(self._pending[name]) >= LINE_CHARACTERS:
            self._flush(name)

    def end(self, name: str, why: str) -> None:
        self._flush(name, f"   <{why}>")

    def _flush(self, name: str, ending: str = "") -> None:
        text, self._pending[name] = self._pending[name], ""
        self._console.file.write(f"{name:>{self._width}} | {_one_line(text)}{ending}\n")


class _LiveBoard:
    def __init__(self, names: Sequence[str], live: Live) -> None:
        self._texts = dict.fromkeys(names, "")
        self._live = live

    def add(self, name: str, text: str) -> None:
        self._texts[name] += text
        self._live.update(_lines(self._texts))

    def end(self, name: str, why: str) -> None:
        self.add(name, f"  <{why}>")


def _lines(texts: Mapping[str, str]) -> Group:
    width = max(len(name) for name in texts)
    return Group(
        *(
            Text.assemble((f"{name:>{width}} ", f"bold {COLOURS[i % len(COLOURS)]}"), (_one_line(text), COLOURS[i % 6]))
            for i, (name, text) in enumerate(texts.items())
        )
    )


def _one_line(text: str) -> str:
    return text.replace("\n", " / ")
