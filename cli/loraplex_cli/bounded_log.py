"""A child's log: a file that never grows past its bound, and the one before it."""

from pathlib import Path
from typing import Final

MAX_BYTES: Final = 8 << 20


class BoundedLog:
    """Appends; at ``max_bytes`` the file becomes ``<name>.1`` and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        if self._file.tell() and self._file.tell() + len(data) > self._max_bytes:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = self.path.open("ab")
        self._file.write(data)
        self._file.flush()

    def tail(self, num_lines: int = 12) -> str:
        """The last lines."""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - (16 << 10)))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-num_lines:])

    def close(self) -> None:
        self._file.close()
