"""What folders that requests named became, as long as their files are the same."""

from collections import OrderedDict
from pathlib import Path
from typing import Final

from loraplex.worker.v1 import registry_pb2

FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
Mark = tuple[tuple[int, int, int, int], ...]


class SourceCache:
    """The least recently used entry goes first.

    Args:
        max_entries: how many folders are remembered.
    """

    def __init__(self, max_entries: int) -> None:
        self._entries: OrderedDict[Path, tuple[Mark, registry_pb2.CommitVersionRequest]] = OrderedDict()
        self._max_entries = max_entries

    def get(self, folder: Path) -> registry_pb2.CommitVersionRequest | None:
        """What was put for this folder, unless a file has changed."""
        known = self._entries.get(folder)
        if known is None or known[0] != self.mark_of(folder):
            return None
        self._entries.move_to_end(folder)
        return known[1]

    def put(self, folder: Path, mark: Mark, prepared: registry_pb2.CommitVersionRequest) -> None:
        """``mark`` is from before the files were read: a change meanwhile is noticed next time."""
        self._entries[folder] = mark, prepared
        self._entries.move_to_end(folder)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def mark_of(self, folder: Path) -> Mark:
        """Changes when a file is written or replaced. Empty if one is missing."""
        try:
            stats = [(folder / name).stat() for name in FILES]
        except OSError:
            return ()
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
