"""Where the single-user service keeps its registry, store and logs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from loraplex_cli.console import CommandFailed


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/loraplex``, else ``~/.local/share/loraplex``."""
    configured = os.environ.get("XDG_DATA_HOME")
    return (Path(configured) if configured else Path.home() / ".local" / "share") / "loraplex"


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Makes the folder and keeps it for this process.

    Raises:
        CommandFailed: it cannot be written, or another service uses it.
    """
    # Not at the top, since clients run on Windows too.
    import fcntl

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "lock").open("a+")
    except OSError as error:
        raise CommandFailed(f"cannot write to {data_dir}: {error.strerror}; choose another --data-dir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                f"{data_dir} is in use by another `loraplex up`: stop that one, or choose another --data-dir"
            ) from None
        yield
