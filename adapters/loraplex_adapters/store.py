"""The content-addressed store of adapter versions: ``<root>/<digest[:2]>/<digest>/{spec.json, adapter.safetensors}``.

A version appears whole or not at all: it is written to a temporary folder in the same file system, synced, and renamed.
It never changes after that. Several processes may share one root.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from loraplex_adapters.digest import adapter_digest, payload_digest
from loraplex_adapters.limits import Limits
from loraplex_adapters.regular_file import read_small_file
from loraplex_adapters.safetensors_file import encode_header, read_tensor_file
from loraplex_adapters.spec import AdapterSpec, is_digest
from loraplex_adapters.tensor import TensorBytes
from loraplex_contract.errors import DataLoss, InvalidArgument, LoraplexError, NotFound

_Result = TypeVar("_Result")
_SPEC_NAME = "spec.json"
_TENSORS_NAME = "adapter.safetensors"
_TEMPORARY = ".tmp"
_TEMPORARY_AGE_S = 3600.0
_MAX_SPEC_BYTES = 4 << 20
_MAX_HEADER_BYTES = 4 << 20


class AdapterStore:
    """One root folder. Stateless, so that it may be used from any thread and by several processes."""

    def __init__(self, root: Path) -> None:
        """Create ``root`` if needed and sweep what failed writers left behind more than an hour ago."""
        self._root = root
        self._temporary = root / _TEMPORARY
        self._temporary.mkdir(parents=True, exist_ok=True)
        self.sweep()

    def put(self, spec: AdapterSpec, tensors: Mapping[str, TensorBytes]) -> None:
        """Store one version durably. The same version again is fine, also at the same time.

        A stored copy that no longer matches its digest is replaced.

        Raises:
            ValueError: ``tensors`` are not what ``spec.digest`` identifies: a bug of the caller.
        """
        payload = payload_digest(tensors)
        if _digest_of(spec, payload) != spec.digest:
            raise ValueError("the spec's digest is not the digest of its sites and tensors")
        if self.has(spec.digest) and not self._discard_if_damaged(spec.digest):
            return
        self.sweep()
        folder = self._new_temporary()
        try:
            _write_version(folder, spec, payload, tensors)
            self._publish(folder, spec.digest)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def has(self, digest: str) -> bool:
        """Whether the version is there (its bytes are not checked)."""
        return self._folder(digest).is_dir()

    def read_spec(self, digest: str) -> AdapterSpec:
        """The version's spec, checked against the digest; its tensors are not read.

        Raises:
            NotFound: not in the store (ARTIFACT_NOT_FOUND).
            DataLoss: damaged (ARTIFACT_CORRUPT).
        """
        return self._read(digest, lambda dir_fd: _read_spec(dir_fd, digest)[0])

    def read_tensors(self, digest: str) -> dict[str, TensorBytes]:
        """All tensors as ``{name: (dtype, shape, bytes)}`` after re-checking the digest over every byte.

        Raises:
            NotFound: not in the store (ARTIFACT_NOT_FOUND).
            DataLoss: damaged (ARTIFACT_CORRUPT).
        """
        return self._read(digest, lambda dir_fd: _read_tensors(dir_fd, digest))

    def delete(self, digest: str) -> bool:
        """Remove a version at once as seen by others, then free its bytes. Returns whether it was there."""
        folder, trash = self._folder(digest), self._temporary / f"trash-{uuid.uuid4().hex}"
        try:
            folder.rename(trash)
        except FileNotFoundError:
            return False
        _sync_folder(folder.parent)
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def digests(self) -> tuple[str, ...]:
        """All stored versions, sorted."""
        names = (entry.name for shard in self._root.glob("[0-9a-f][0-9a-f]") for entry in shard.iterdir())
        return tuple(sorted(name for name in names if is_digest(name)))

    def sweep(self, *, older_than_s: float = _TEMPORARY_AGE_S) -> None:
        """Remove temporary folders of writers that died."""
        limit = time.time() - older_than_s
        for entry in self._temporary.iterdir():
            try:
                is_old = entry.lstat().st_mtime < limit
            except FileNotFoundError:
                continue  # its owner has just finished
            if is_old:
                shutil.rmtree(entry, ignore_errors=True)

    def _folder(self, digest: str) -> Path:
        if not is_digest(digest):
            raise InvalidArgument("digest must be 64 lower-case hexadecimal digits", reason="FIELD_INVALID")
        return self._root / digest[:2] / digest

    def _new_temporary(self) -> Path:
        folder = self._temporary / f"put-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def _publish(self, folder: Path, digest: str) -> None:
        target = self._folder(digest)
        target.parent.mkdir(exist_ok=True)
        _sync_folder(self._root)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another writer was first with the same bytes
                raise
        _sync_folder(target.parent)

    def _discard_if_damaged(self, digest: str) -> bool:
        try:
            self.read_tensors(digest)
        except DataLoss:
            self.delete(digest)
            return True
        except NotFound:
            return True
        return False

    def _read(self, digest: str, read: Callable[[int], _Result]) -> _Result:
        try:
            dir_fd = os.open(self._folder(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            message = f"adapter version {digest[:12]} is not in the store"
            raise NotFound(message, reason="ARTIFACT_NOT_FOUND", metadata={"digest": digest}) from error
        try:
            return read(dir_fd)
        except (LoraplexError, OSError) as error:
            raise _corrupt(digest) from error
        finally:
            os.close(dir_fd)


def _corrupt(digest: str) -> DataLoss:
    message = f"the stored bytes of adapter version {digest[:12]} do not match its digest; register it again"
    return DataLoss(message, reason="ARTIFACT_CORRUPT", metadata={"digest": digest})


def _digest_of(spec: AdapterSpec, payload: bytes) -> str:
    return adapter_digest(kind=spec.kind, dtype=spec.dtype, num_bytes=spec.num_bytes, sites=spec.sites, payload=payload)


def _read_spec(dir_fd: int, digest: str) -> tuple[AdapterSpec, bytes]:
    try:
        document: Any = json.loads(read_small_file(_SPEC_NAME, dir_fd=dir_fd, max_bytes=_MAX_SPEC_BYTES))
        spec, payload = AdapterSpec.from_json(document["spec"]), bytes.fromhex(document["payload_sha256"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _corrupt(digest) from error
    if spec.digest != digest or _digest_of(spec, payload) != digest:
        raise _corrupt(digest)
    return spec, payload


def _read_tensors(dir_fd: int, digest: str) -> dict[str, TensorBytes]:
    spec, payload = _read_spec(dir_fd, digest)
    limits = Limits(max_file_bytes=spec.num_bytes + _MAX_HEADER_BYTES, max_header_bytes=_MAX_HEADER_BYTES)
    tensors = read_tensor_file(_TENSORS_NAME, dir_fd=dir_fd, limits=limits).tensors
    if payload_digest(tensors) != payload:
        raise _corrupt(digest)
    return tensors


def _write_version(folder: Path, spec: AdapterSpec, payload: bytes, tensors: Mapping[str, TensorBytes]) -> None:
    ordered = {name: tensors[name] for name in spec.tensor_names}
    _write_file(folder / _TENSORS_NAME, [encode_header(ordered), *(tensor.data for tensor in ordered.values())])
    document = json.dumps({"spec": spec.to_json(), "payload_sha256": payload.hex()})
    _write_file(folder / _SPEC_NAME, [document.encode()])
    _sync_folder(folder)


def _write_file(path: Path, parts: Iterable[bytes]) -> None:
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
