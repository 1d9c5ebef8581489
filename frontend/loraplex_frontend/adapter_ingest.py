"""From a folder that a caller names to a version in the store. Files are read in a thread, never on the event loop."""

import asyncio
import concurrent.futures
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.ingest import IngestReport, ingest
from loraplex_adapters.limits import Limits
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import InvalidArgument, PermissionDenied
from loraplex_frontend.request_limits import MAX_URI_CHARS


class AdapterIngest:
    """Reads adapters below the roots that the operator allows.

    Args:
        roots: folders; empty allows none.
        num_threads: adapters that are read at once, which bounds the memory that reading takes.
    """

    def __init__(
        self, *, base: BaseShape, store: AdapterStore, roots: tuple[Path, ...], limits: Limits, num_threads: int = 1
    ) -> None:
        self._base = base
        self._store = store
        self._roots = tuple(root.resolve() for root in roots)
        self.limits: Final = limits
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="ingest")

    def folder_of(self, uri: str) -> Path:
        """The real folder behind a ``file:`` uri or an absolute path, links followed.

        Raises:
            InvalidArgument: not such a uri (SOURCE_INVALID).
            PermissionDenied: not below an allowed root, or not there: the two read the same (SOURCE_NOT_ALLOWED).
        """
        path = _path_of(uri)
        try:
            folder = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise _not_allowed() from None
        if not any(folder.is_relative_to(root) for root in self._roots):
            raise _not_allowed()
        return folder

    async def ingest(self, folder: Path, *, validate_only: bool = False, expected_digest: str = "") -> IngestReport:
        """Validates and stores one version; with an expected digest nothing else is stored.

        Raises:
            InvalidArgument: the files are malformed, or have another digest (DIGEST_MISMATCH).
            FailedPrecondition: a valid adapter that does not fit this base model or server.
        """
        return await self._run(folder, validate_only=validate_only, expected_digest=expected_digest)

    def has(self, digest: str) -> bool:
        return self._store.has(digest)

    async def delete(self, digests: Sequence[str], *, until_s: float) -> list[str]:
        """Frees versions' bytes in the store, none later than ``until_s`` on the monotonic clock; which are gone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._delete, digests, until_s)

    def _delete(self, digests: Sequence[str], until_s: float) -> list[str]:
        deleted = []
        for digest in digests:
            if time.monotonic() >= until_s:
                break
            self._store.delete(digest)
            deleted.append(digest)
        return deleted

    def num_parameters(self, report: IngestReport) -> int:
        """Numbers in all tensors: what a worker's pages are counted from."""
        return report.spec.num_parameters

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, folder: Path, *, validate_only: bool, expected_digest: str) -> IngestReport:
        work = functools.partial(
            ingest,
            folder,
            base=self._base,
            store=self._store,
            limits=self.limits,
            validate_only=validate_only,
            expected_digest=expected_digest,
        )
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _path_of(uri: str) -> Path:
    if not uri or len(uri) > MAX_URI_CHARS or "\0" in uri:
        raise _bad_uri()
    if uri.startswith("/"):
        return Path(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise _bad_uri() from None
    path = unquote(parts.path)
    is_local = parts.scheme == "file" and parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
    if not is_local or not path.startswith("/") or "\0" in path:
        raise _bad_uri()
    return Path(path)


def _bad_uri() -> InvalidArgument:
    message = f"uri: must be file:///folder or an absolute path of at most {MAX_URI_CHARS} characters"
    return InvalidArgument(message, reason="SOURCE_INVALID")


def _not_allowed() -> PermissionDenied:
    message = "uri: no folder below a root that the operator allows (setting adapter_roots)"
    return PermissionDenied(message, reason="SOURCE_NOT_ALLOWED")
