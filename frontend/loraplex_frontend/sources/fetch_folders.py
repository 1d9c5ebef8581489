"""Private folders for what is being fetched: ``<root>/<random>/``, each locked as long as its fetch lives."""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Final

_YOUNG_S: Final = 60.0
"""A folder is made a moment before it is locked."""


class FetchFolder:
    """Blocks on the disk: use it on a thread."""

    def __init__(self, root: Path) -> None:
        self.path = root / uuid.uuid4().hex
        self.path.mkdir(mode=0o700)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep_fetch_folders(root: Path) -> int:
    """Removes the folders of processes that died; how many those were. Blocks on the disk."""
    num_swept = 0
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime + _YOUNG_S < time.time() and _remove_unlocked(path):
                num_swept += 1
    return num_swept


def _remove_unlocked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
