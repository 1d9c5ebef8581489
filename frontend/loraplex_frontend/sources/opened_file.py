"""A file of a source, open to be read once."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """What the source said of the file, and its bytes."""

    chunks: AsyncIterator[bytes]
    num_bytes: int | None
    """As announced. None: not said."""
    sha256: str = ""
    """As announced, 64 hex digits. Empty: not said."""


class SourceFolder(Protocol):
    """A remote folder with an adapter in it."""

    def open(self, file_name: str) -> AbstractAsyncContextManager[OpenedFile]:
        """Raises LoraplexError."""
        ...
