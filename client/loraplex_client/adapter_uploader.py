"""Sends an adapter's folder, and goes on by itself where a stream broke."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter_upload import AdapterUpload
from loraplex_client.convert import adapter as from_adapter
from loraplex_client.rpc_errors import errors_of
from loraplex_contract.errors import Internal, LoraplexError, field_error

FILE_NAMES: Final = ("adapter_config.json", "adapter_model.safetensors")
UPLOAD_ID_KEY: Final = "loraplex-upload-id"
_CHUNK_BYTES: Final = 512 << 10
_MAX_ATTEMPTS: Final = 6
_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0
_PASSING: Final = frozenset({"UNREACHABLE", "UPLOAD_BUSY", "UPLOAD_SILENT", "DRAINING", "UPLOAD_SPACE"})
"""What a later stream may not meet any more."""


class AdapterUploader:
    """One upload.

    Args:
        method: the stub's UploadAdapter.
        upload_id: of an upload to go on with; empty begins one.
    """

    def __init__(
        self, method: Any, target: str, metadata: Sequence[tuple[str, str]], folder: Path, upload_id: str
    ) -> None:
        self._method = method
        self._target = target
        self._metadata = metadata
        self._folder = folder
        self._upload_id = upload_id
        self._headers: list[adapter_pb2.UploadHeader] = []
        self._read_error: OSError | None = None

    async def run(self) -> AdapterUpload:
        """Raises LoraplexError, and OSError for a folder that cannot be read."""
        self._headers = [await asyncio.to_thread(self._header, name) for name in FILE_NAMES]
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await self._attempt()
            except LoraplexError as error:
                if not _is_passing(error) or attempt == _MAX_ATTEMPTS:
                    raise
                backoff_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
                await asyncio.sleep(error.retry_delay_s or backoff_s)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self) -> AdapterUpload:
        if not self._upload_id:
            return await self._send({})
        state = await self._call(self._questions())
        if state.is_complete:
            return state
        return await self._send({file.file_name: file.num_committed_bytes for file in state.files})

    async def _questions(self) -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
        """Headers alone: the answer says how far each file has come."""
        for header in self._resuming():
            yield adapter_pb2.UploadAdapterRequest(header=header)

    async def _send(self, offsets: dict[str, int]) -> AdapterUpload:
        return await self._call(self._messages(offsets))

    async def _messages(self, offsets: dict[str, int]) -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
        for header in self._resuming():
            yield adapter_pb2.UploadAdapterRequest(header=header)
            offset = offsets.get(header.file_name, 0)
            with (self._folder / header.file_name).open("rb") as file:
                file.seek(offset)
                while data := await self._read(file):
                    yield adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.UploadChunk(offset=offset, data=data))
                    offset += len(data)
            yield adapter_pb2.UploadAdapterRequest(trailer=adapter_pb2.UploadTrailer())

    async def _read(self, file: Any) -> bytes:
        try:
            data: bytes = await asyncio.to_thread(file.read, _CHUNK_BYTES)
        except OSError as error:
            self._read_error = error
            raise
        return data

    def _resuming(self) -> list[adapter_pb2.UploadHeader]:
        first, *others = self._headers
        resumed = adapter_pb2.UploadHeader(resume_upload_id=self._upload_id)
        resumed.MergeFrom(first)
        return [resumed, *others]

    async def _call(self, messages: AsyncIterator[adapter_pb2.UploadAdapterRequest]) -> AdapterUpload:
        with errors_of(self._target):
            call = self._method(messages, metadata=self._metadata)
            try:
                self._note_id(await call.initial_metadata())
                return from_adapter.upload(await call)
            except asyncio.CancelledError:
                if self._read_error is not None:
                    # grpc cancels a call whose messages cannot be made; the caller wants to know why.
                    raise self._read_error from None
                raise
            finally:
                call.cancel()

    def _note_id(self, metadata: grpc.aio.Metadata) -> None:
        for key, value in metadata:
            if key == UPLOAD_ID_KEY:
                self._upload_id = str(value)

    def _header(self, name: str) -> adapter_pb2.UploadHeader:
        hasher, num_bytes = hashlib.sha256(), 0
        try:
            with (self._folder / name).open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    hasher.update(data)
                    num_bytes += len(data)
        except FileNotFoundError:
            raise field_error("folder", f"has no {name}; give a folder as PEFT saved it") from None
        return adapter_pb2.UploadHeader(file_name=name, num_bytes=num_bytes, sha256=hasher.hexdigest())


def _is_passing(error: LoraplexError) -> bool:
    """grpc's own core calls a message that could not be sent INTERNAL; a server's INTERNAL names an incident."""
    return error.reason in _PASSING or (isinstance(error, Internal) and not error.metadata)
