"""Uploads on disk: ``<root>/<upload id>/{upload.json, <file>, <file>.part}``, bounded in number, bytes and age.

The folder lies beside the store, so that any frontend can go on with an upload that another one began. Locks are the
kernel's (flock): they end with the process that holds them.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from loraplex_contract.errors import Aborted, FailedPrecondition, NotFound, ResourceExhausted
from loraplex_frontend.uploads.uploaded_file import FilePlan, UploadedFile

_T = TypeVar("_T")
_UPLOAD_ID: Final = re.compile(r"[0-9a-f]{32}")
_PLAN_NAME: Final = "upload.json"
_LOCK_NAME: Final = ".lock"
CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
FILE_NAMES: Final = (CONFIG_NAME, WEIGHTS_NAME)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What uploads may take of the disk."""

    max_file_bytes: Mapping[str, int]
    """By file name."""
    max_total_bytes: int
    """Announced bytes of all uploads together."""
    max_per_tenant: int = 16
    ttl_s: float = 3_600.0
    """After its last sign of life, an upload is forgotten."""


class OpenUpload:
    """An upload that this stream alone may write to."""

    def __init__(self, upload_id: str, folder: Path, tenant: str, plans: Mapping[str, FilePlan], ttl_s: float) -> None:
        self.upload_id = upload_id
        self._folder = folder
        self.tenant = tenant
        self._ttl_s = ttl_s
        self.files = {name: UploadedFile(folder, name, plan) for name, plan in plans.items()}

    @property
    def expires_s(self) -> float:
        """Wall clock."""
        return time.time() + self._ttl_s

    def touch(self) -> None:
        os.utime(self._folder)

    def plan(self, name: str, plan: FilePlan) -> UploadedFile:
        """Blocks. Raises FailedPrecondition for a file that was announced otherwise before (UPLOAD_CHANGED)."""
        known = self.files.get(name)
        if known is None:
            self.files[name] = UploadedFile(self._folder, name, plan)
            self._save()
        elif known.plan.num_bytes != plan.num_bytes or (plan.sha256 and plan.sha256 != known.plan.sha256):
            message = f"header: {name} was announced with another size or sha256: begin a new upload"
            raise FailedPrecondition(message, reason="UPLOAD_CHANGED")
        return self.files[name]

    def _save(self) -> None:
        document = {
            "tenant": self.tenant,
            "files": {name: file.plan.as_document() for name, file in self.files.items()},
        }
        staging = self._folder / f"{_PLAN_NAME}.tmp"
        staging.write_text(json.dumps(document))
        staging.replace(self._folder / _PLAN_NAME)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class UploadStore:
    """Use from one event loop; the disk is touched on threads of its own."""

    def __init__(self, root: Path, limits: UploadLimits, *, num_threads: int = 2) -> None:
        self._root = root
        self.limits: Final = limits
        root.mkdir(parents=True, exist_ok=True)
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="upload")

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Off the event loop. Who gives up waits for the thread first: nothing is written once the lock is gone."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    @contextlib.asynccontextmanager
    async def opened(self, upload_id: str, tenant: str, num_new_bytes: int) -> AsyncIterator[OpenUpload]:
        """A new upload, or with an id the one that broke.

        Args:
            num_new_bytes: of the first file, which must fit.

        Raises:
            NotFound: no such upload of this tenant, or it has expired (UPLOAD_NOT_FOUND).
            Aborted: another stream writes to it (UPLOAD_BUSY).
            ResourceExhausted: no room (UPLOAD_SPACE).
        """
        if not upload_id:
            upload_id = await self.run(lambda: self._create(tenant, num_new_bytes))
        lock = await self.run(lambda: self._lock(upload_id, tenant))
        try:
            upload = await self.run(lambda: self._load(upload_id, tenant))
            try:
                yield upload
            finally:
                # Not awaited: a call that ends early may not wait for anything any more.
                upload.close()
        finally:
            os.close(lock)

    @contextlib.asynccontextmanager
    async def finished(self, upload_id: str, tenant: str) -> AsyncIterator[Path]:
        """The folder of an upload whose files are complete; nobody writes to it meanwhile.

        Raises:
            NotFound: no such upload of this tenant, or it has expired (UPLOAD_NOT_FOUND).
            FailedPrecondition: a file is not complete (UPLOAD_INCOMPLETE).
            Aborted: a stream writes to it (UPLOAD_BUSY).
        """
        async with self.opened(upload_id, tenant, 0) as upload:
            missing = [name for name in FILE_NAMES if name not in upload.files or not upload.files[name].is_complete]
            if missing:
                message = f"upload_id: {missing[0]} is not complete: go on with the upload first"
                raise FailedPrecondition(message, reason="UPLOAD_INCOMPLETE", metadata={"file": missing[0]})
            yield self._root / upload_id

    async def discard(self, upload_id: str, tenant: str) -> None:
        await self.run(lambda: shutil.rmtree(self._root / upload_id, ignore_errors=True))

    async def plan(self, upload: OpenUpload, name: str, plan: FilePlan) -> UploadedFile:
        """One file of an upload, new or gone on with.

        Raises:
            ResourceExhausted: no room for a new one (UPLOAD_SPACE).
            FailedPrecondition: it was announced otherwise before (UPLOAD_CHANGED).
        """
        return await self.run(lambda: self._plan_file(upload, name, plan))

    async def sweep(self) -> int:
        """Forgets what nobody has gone on with; how many that were."""
        return await self.run(self._sweep)

    # --- on a thread ---

    def _create(self, tenant: str, num_new_bytes: int) -> str:
        self._sweep()
        with self._locked_root():
            self._check_room(tenant, num_new_bytes, num_new_uploads=1)
            upload_id = uuid.uuid4().hex
            folder = self._root / upload_id
            folder.mkdir(mode=0o700)
            (folder / _PLAN_NAME).write_text(json.dumps({"tenant": tenant, "files": {}}))
        return upload_id

    def _plan_file(self, upload: OpenUpload, name: str, plan: FilePlan) -> UploadedFile:
        with self._locked_root():
            if name not in upload.files:
                self._check_room(upload.tenant, plan.num_bytes, num_new_uploads=0)
            return upload.plan(name, plan)

    def _check_room(self, tenant: str, num_new_bytes: int, *, num_new_uploads: int) -> None:
        uploads = [plan for _, plan in self._all()]
        num_bytes = sum(file["num_bytes"] for plan in uploads for file in plan["files"].values())
        if num_bytes + num_new_bytes > self.limits.max_total_bytes:
            message = f"the uploads under way take {num_bytes} of {self.limits.max_total_bytes} bytes: try again later"
            raise ResourceExhausted(message, reason="UPLOAD_SPACE", retry_delay_s=30.0)
        num_uploads = sum(plan["tenant"] == tenant for plan in uploads)
        if num_uploads + num_new_uploads > self.limits.max_per_tenant:
            message = f"{num_uploads} uploads are under way: finish one, or wait until one expires"
            raise ResourceExhausted(message, reason="UPLOAD_SPACE", retry_delay_s=30.0)

    def _lock(self, upload_id: str, tenant: str) -> int:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise _not_found()
        try:
            fd = os.open(self._root / upload_id, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _not_found() from None
        try:
            if self._plan(self._root / upload_id).get("tenant") != tenant:
                raise _not_found()
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            message = "the upload is being written to, or registered, by another call: wait for that one"
            raise Aborted(message, reason="UPLOAD_BUSY", retry_delay_s=1.0) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _load(self, upload_id: str, tenant: str) -> OpenUpload:
        folder = self._root / upload_id
        plan = self._plan(folder)
        if plan.get("tenant") != tenant:
            raise _not_found()
        plans = {name: FilePlan(**plan["files"][name]) for name in FILE_NAMES if name in plan["files"]}
        upload = OpenUpload(upload_id, folder, tenant, plans, self.limits.ttl_s)
        upload.touch()
        return upload

    def _sweep(self) -> int:
        num_swept = 0
        for folder, _ in self._all():
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_mtime + self.limits.ttl_s < time.time() and self._remove_unused(folder):
                    num_swept += 1
        return num_swept

    def _remove_unused(self, folder: Path) -> bool:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _all(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in list(self._root.iterdir()):
            if _UPLOAD_ID.fullmatch(folder.name):
                plan = self._plan(folder)
                yield folder, plan if plan else {"tenant": "", "files": {}}

    def _plan(self, folder: Path) -> dict[str, Any]:
        """Empty for an upload that has just gone, or whose making was cut short."""
        try:
            plan: dict[str, Any] = json.loads((folder / _PLAN_NAME).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return plan

    @contextlib.contextmanager
    def _locked_root(self) -> Iterator[None]:
        """So that two that begin at once cannot take the same room."""
        with (self._root / _LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _not_found() -> NotFound:
    return NotFound("no such upload, or it has expired: begin a new one", reason="UPLOAD_NOT_FOUND")
