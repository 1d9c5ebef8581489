"""Reading a file that somebody else controls: no link, FIFO or device, no more than the cap, no mmap."""

import os
import stat

from loraplex_adapters.refusal import SOURCE_NOT_FOUND, malformed

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(name: str, *, dir_fd: int) -> int:
    """A descriptor of the regular file ``name`` in an open folder.

    O_NONBLOCK keeps a FIFO from blocking the open; the type is checked on the descriptor, so it cannot change after.

    Raises:
        InvalidArgument: missing or unreadable (SOURCE_NOT_FOUND), or not a regular file (ADAPTER_MALFORMED).
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise malformed(f"{name} is missing", reason=SOURCE_NOT_FOUND, file=name) from error
    except OSError as error:
        raise malformed(f"{name} is not a readable regular file (links are not followed)", file=name) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise malformed(f"{name} is not a regular file", file=name)
    return fd


def file_size(fd: int, name: str, *, max_bytes: int) -> int:
    """Size of an open file.

    Raises:
        InvalidArgument: larger than ``max_bytes`` (ADAPTER_MALFORMED).
    """
    num_bytes = os.fstat(fd).st_size
    if num_bytes > max_bytes:
        raise malformed(f"{name} has {num_bytes} bytes; at most {max_bytes} are accepted", file=name)
    return num_bytes


def read_exactly(fd: int, num_bytes: int, *, name: str) -> bytes:
    """The next ``num_bytes`` of the file, as a private copy.

    Raises:
        InvalidArgument: the file ends early (ADAPTER_MALFORMED).
    """
    chunks: list[bytes] = []
    missing = num_bytes
    while missing:
        chunk = os.read(fd, missing)
        if not chunk:
            raise malformed(f"{name} ends after {num_bytes - missing} of {num_bytes} bytes", file=name)
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def read_small_file(name: str, *, dir_fd: int, max_bytes: int) -> bytes:
    """The whole of a small regular file; raises as ``open_regular`` and ``file_size``."""
    fd = open_regular(name, dir_fd=dir_fd)
    try:
        return read_exactly(fd, file_size(fd, name, max_bytes=max_bytes), name=name)
    finally:
        os.close(fd)
