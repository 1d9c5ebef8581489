"""One file of an upload on disk: what has come of it, and how it grows."""

import dataclasses
import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any, Final

from loraplex_contract.errors import InvalidArgument, OutOfRange, ResourceExhausted

_READ_BYTES: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """What the client said that it will send."""

    num_bytes: int
    sha256: str
    """Empty: the trailer has it."""

    def as_document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class UploadedFile:
    """Appends in order and hashes on the way. Every method blocks on the disk: call it on a thread.

    Args:
        folder: of the upload.
        name: one of the two that an adapter has; never a path.
    """

    def __init__(self, folder: Path, name: str, plan: FilePlan) -> None:
        self._path = folder / name
        self._part = folder / f"{name}.part"
        self.name = name
        self.plan = plan
        self._file: io.FileIO | None = None
        self._hash = hashlib.sha256()
        self.num_committed = self._path.stat().st_size if self.is_complete else self._part_size()

    @property
    def is_complete(self) -> bool:
        return self._path.exists()

    def append(self, offset: int, data: bytes) -> None:
        """
        Raises:
            OutOfRange: not where the file ends now (UPLOAD_OFFSET).
            InvalidArgument: more than was announced.
        """
        if self.is_complete or offset != self.num_committed:
            message = (
                f"chunk.offset: {self.name} has {self.num_committed} bytes, the next chunk cannot begin at {offset}"
            )
            metadata = {"num_committed_bytes": f"{self.num_committed}"}
            raise OutOfRange(message, reason="UPLOAD_OFFSET", metadata=metadata)
        if offset + len(data) > self.plan.num_bytes:
            message = f"chunk: {self.name} was announced with {self.plan.num_bytes} bytes, this is more"
            raise InvalidArgument(message, reason="FIELD_INVALID")
        _write_all(self._opened(), data, self.name)
        self._hash.update(data)
        self.num_committed += len(data)

    def finish(self, sha256: str) -> None:
        """All bytes are there and have this digest; else the file starts again at 0.

        Raises:
            InvalidArgument: bytes are missing (UPLOAD_INCOMPLETE), or they are others (DIGEST_MISMATCH).
        """
        if self.is_complete:
            return
        if self.num_committed != self.plan.num_bytes:
            message = (
                f"trailer: {self.name} has {self.num_committed} of {self.plan.num_bytes} bytes; send the rest first"
            )
            raise InvalidArgument(message, reason="UPLOAD_INCOMPLETE")
        file = self._opened()
        found = self._hash.hexdigest()
        if {found} != {sha256, self.plan.sha256} - {""}:
            self.restart()
            message = f"trailer: the bytes of {self.name} have another sha256 than announced: send the file again"
            raise InvalidArgument(message, reason="DIGEST_MISMATCH", metadata={"sha256": found})
        os.fsync(file.fileno())
        self.close()
        self._part.rename(self._path)

    def restart(self) -> None:
        self.close()
        self._part.unlink(missing_ok=True)
        self._hash, self.num_committed = hashlib.sha256(), 0

    def close(self) -> None:
        """What was written stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _part_size(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _opened(self) -> io.FileIO:
        """Hashes what an earlier stream left, so that the digest is of the bytes on disk."""
        if self._file is None:
            self._hash = hashlib.sha256()
            # Unbuffered: what is committed is in the file, also when this process dies.
            self._file = io.FileIO(self._part, "a+")
            self._file.seek(0)
            while data := self._file.read(_READ_BYTES):
                self._hash.update(data)
        return self._file


def _write_all(file: io.FileIO, data: bytes, name: str) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"chunk: the server has no room for {name} now: go on with the upload later"
        raise ResourceExhausted(message, reason="UPLOAD_SPACE", retry_delay_s=30.0) from None
