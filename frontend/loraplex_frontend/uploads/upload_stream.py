"""One UploadAdapter call: headers, chunks and trailers into an upload."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf import timestamp_pb2

from loraplex.v1 import adapter_pb2
from loraplex_contract import ids
from loraplex_contract.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from loraplex_frontend.uploads.upload_store import FILE_NAMES, OpenUpload, UploadStore
from loraplex_frontend.uploads.uploaded_file import FilePlan, UploadedFile
from loraplex_frontend.violations import Violations

UPLOAD_ID_KEY: Final = "loraplex-upload-id"
MAX_CHUNK_BYTES: Final = 1 << 20
SILENT_S: Final = 60.0
"""Between two messages of a stream; what has come stays."""


class UploadStream:
    """Takes the messages of one call in order."""

    def __init__(self, store: UploadStore, tenant: str, *, silent_s: float = SILENT_S) -> None:
        self._store = store
        self._tenant = tenant
        self._silent_s = silent_s
        self._file: UploadedFile | None = None

    async def take(
        self, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        """Raises LoraplexError; what was committed before stays, and the upload can be gone on with."""
        messages = aiter(requests)
        first = await self._next(messages)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("the first message must be a header", reason="PROTOCOL_VIOLATION")
        self._check_header(first.header)
        resume = first.header.resume_upload_id
        async with self._store.opened(resume, self._tenant, first.header.num_bytes) as upload:
            await context.send_initial_metadata(((UPLOAD_ID_KEY, upload.upload_id),))
            message: adapter_pb2.UploadAdapterRequest | None = first
            while message is not None:
                await self._apply(message, upload, is_first=message is first)
                message = await self._next(messages)
            return _answer(upload)

    async def _next(
        self, messages: AsyncIterator[adapter_pb2.UploadAdapterRequest]
    ) -> adapter_pb2.UploadAdapterRequest | None:
        try:
            async with asyncio.timeout(self._silent_s):
                return await anext(messages, None)
        except TimeoutError:
            message = f"nothing came for {self._silent_s:g} s: go on with the upload in a new call"
            raise DeadlineExceeded(message, reason="UPLOAD_SILENT") from None

    async def _apply(self, message: adapter_pb2.UploadAdapterRequest, upload: OpenUpload, *, is_first: bool) -> None:
        match message.WhichOneof("part"):
            case "header":
                self._check_header(message.header, is_first=is_first)
                self._file = await self._begin(message.header, upload)
            case "chunk":
                await self._append(message.chunk, self._open_file())
            case "trailer":
                file, self._file = self._open_file(), None
                await self._finish(message.trailer, file)
            case _:
                raise InvalidArgument("a message is empty", reason="PROTOCOL_VIOLATION")
        await self._store.run(upload.touch)

    def _open_file(self) -> UploadedFile:
        if self._file is None:
            raise InvalidArgument("a chunk or trailer must follow its file's header", reason="PROTOCOL_VIOLATION")
        return self._file

    async def _begin(self, header: adapter_pb2.UploadHeader, upload: OpenUpload) -> UploadedFile:
        plan = FilePlan(num_bytes=header.num_bytes, sha256=header.sha256)
        return await self._store.plan(upload, header.file_name, plan)

    async def _append(self, chunk: adapter_pb2.UploadChunk, file: UploadedFile) -> None:
        if len(chunk.data) > MAX_CHUNK_BYTES:
            message = f"chunk.data: has {len(chunk.data)} bytes, the limit is {MAX_CHUNK_BYTES}"
            raise InvalidArgument(message, reason="FIELD_INVALID")
        await self._store.run(lambda: file.append(chunk.offset, chunk.data))

    async def _finish(self, trailer: adapter_pb2.UploadTrailer, file: UploadedFile) -> None:
        if not trailer.sha256 and not file.plan.sha256:
            raise InvalidArgument("trailer.sha256: is missing, here and in the header", reason="FIELD_INVALID")
        await self._store.run(lambda: file.finish(trailer.sha256))

    def _check_header(self, header: adapter_pb2.UploadHeader, *, is_first: bool = True) -> None:
        found = Violations()
        found.known_fields_only("header", header)
        if header.file_name not in FILE_NAMES:
            found.add("header.file_name", f"must be one of {', '.join(FILE_NAMES)}")
        if header.sha256 and not ids.is_digest(header.sha256):
            found.add("header.sha256", "must have 64 lower-case hex digits")
        if header.num_bytes == 0:
            found.add("header.num_bytes", "must be at least 1")
        if header.resume_upload_id and not is_first:
            found.add("header.resume_upload_id", "goes in the first header of a stream only")
        found.raise_if_any()
        limit = self._store.limits.max_file_bytes[header.file_name]
        if header.num_bytes > limit:
            message = f"header.num_bytes: {header.file_name} has {header.num_bytes} bytes; at most {limit} are accepted"
            raise FailedPrecondition(message, reason="ADAPTER_TOO_LARGE", metadata={"max_bytes": f"{limit}"})


def _answer(upload: OpenUpload) -> adapter_pb2.UploadAdapterResponse:
    expire_time = timestamp_pb2.Timestamp()
    expire_time.FromNanoseconds(int(upload.expires_s * 1e9))
    files = [
        adapter_pb2.UploadedFile(
            file_name=file.name,
            num_bytes=file.plan.num_bytes,
            num_committed_bytes=file.num_committed,
            is_complete=file.is_complete,
        )
        for file in upload.files.values()
    ]
    return adapter_pb2.UploadAdapterResponse(
        upload_id=upload.upload_id,
        num_committed_bytes=sum(file.num_committed_bytes for file in files),
        expire_time=expire_time,
        files=files,
    )
