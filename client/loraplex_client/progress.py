"""A bar that shows how far a long list is."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Progress(Protocol):
    """What is told after each request."""

    def update(self, num_done: int) -> object: ...


UseTqdm = bool | Callable[..., Any]
"""False: no bar. True: ours. A callable: made with ``total`` and ``desc``, as tqdm is."""


class _NoBar:
    def update(self, num_done: int) -> None:
        del num_done


@contextlib.contextmanager
def progress_bar(use_tqdm: UseTqdm, total: int, title: str = "Processed prompts") -> Iterator[Progress]:
    """A bar on stderr, for more than one request."""
    if callable(use_tqdm):
        with contextlib.closing(use_tqdm(total=total, desc=title)) as given:
            yield given
    elif use_tqdm and total > 1:
        with _rich_bar(total, title) as bar:
            yield bar
    else:
        yield _NoBar()


class _RichBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, num_done: int) -> None:
        self._progress.update(self._task, advance=num_done)


@contextlib.contextmanager
def _rich_bar(total: int, title: str) -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield _NoBar()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        yield _RichBar(progress, progress.add_task(title, total=total))
