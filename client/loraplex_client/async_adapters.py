"""The adapters of a server, for asyncio programs."""

import datetime
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter import Adapter, AdapterState
from loraplex_client.adapter_changes import AdapterChanges
from loraplex_client.adapter_requests import (
    AdapterSource,
    expiry,
    set_source,
    state_pb,
    unregister_mode,
    update_request,
)
from loraplex_client.adapter_upload import AdapterUpload
from loraplex_client.adapter_uploader import AdapterUploader
from loraplex_client.convert import adapter as from_adapter
from loraplex_client.rpc_errors import errors_of

INGEST_TIMEOUT_S: Final = 900.0
"""The server's own deadlines are shorter."""
PAGE_SIZE: Final = 200


class AsyncAdapters:
    """The part of ``AsyncClient`` that AdapterService answers."""

    target: str
    _metadata: Any
    _adapters: Any

    async def _call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        raise NotImplementedError

    async def register_adapter(
        self,
        name: str,
        source: AdapterSource,
        *,
        allow_update: bool = False,
        validate_only: bool = False,
        expected_digest: str = "",
        labels: Mapping[str, str] | None = None,
        description: str = "",
        expire_time: datetime.datetime | None = None,
        request_id: str = "",
        timeout_s: float = INGEST_TIMEOUT_S,
    ) -> Adapter:
        """Validates and stores one version and points the name at it.

        Args:
            source: a folder that the server can read, a URI (``hf://``, ``s3://``, ...) that it allows, or what
                ``upload_adapter`` returned.
            allow_update: let an existing name move to a new version.
            validate_only: report what would be applied, store nothing.
            expire_time: with a time zone; the name is unregistered then. None: never.
            request_id: makes a repetition of the same call, within a day, answer as the first one did.

        Raises:
            AlreadyExists: the name has other bytes, without ``allow_update``.
            FailedPrecondition: the adapter does not fit the base model.
            PermissionDenied: the server may not read from there.
        """
        request = adapter_pb2.RegisterAdapterRequest(
            name=name,
            allow_update=allow_update,
            validate_only=validate_only,
            expected_digest=expected_digest,
            labels=dict(labels or {}),
            description=description,
            expire_time=expiry(expire_time),
            request_id=request_id,
        )
        set_source(request, source)
        response = await self._call(self._adapters.RegisterAdapter, request, timeout_s)
        return from_adapter.adapter(response.adapter)

    async def upload_adapter(self, folder: str | Path, *, upload_id: str = "") -> AdapterUpload:
        """Sends a folder of this machine, for ``register_adapter``. A stream that breaks is gone on with.

        Args:
            upload_id: of an upload of the same files that broke earlier, to go on with it.

        Raises:
            InvalidArgument: a file is missing, or is not what was announced before.
            NotFound: no such upload, or it has expired.
        """
        path = Path(folder).expanduser()
        return await AdapterUploader(self._adapters.UploadAdapter, self.target, self._metadata, path, upload_id).run()

    async def update_adapter(
        self,
        name: str,
        *,
        source: AdapterSource | None = None,
        labels: Mapping[str, str] | None = None,
        description: str | None = None,
        expire_time: datetime.datetime | None = None,
        never_expires: bool = False,
        etag: str = "",
        expected_digest: str = "",
        validate_only: bool = False,
        request_id: str = "",
        timeout_s: float = INGEST_TIMEOUT_S,
    ) -> Adapter:
        """Changes what is given and nothing else; with a source, the name moves to a next version.

        Args:
            labels: all of them at once; ``{}`` takes them away.
            etag: of ``Adapter.etag``: refuse if somebody has changed it since.

        Raises:
            NotFound: no such name.
            Aborted: it has changed since the etag was read.
        """
        request = update_request(
            name,
            source=source,
            labels=labels,
            description=description,
            expire_time=expire_time,
            never_expires=never_expires,
            etag=etag,
        )
        request.expected_digest, request.validate_only, request.request_id = expected_digest, validate_only, request_id
        response = await self._call(self._adapters.UpdateAdapter, request, timeout_s)
        return from_adapter.adapter(response.adapter)

    async def get_adapter(self, name: str) -> Adapter:
        """Raises NotFound for a name that is not there, or not the caller's."""
        response = await self._call(self._adapters.GetAdapter, adapter_pb2.GetAdapterRequest(name=name))
        return from_adapter.adapter(response.adapter)

    async def list_adapters(
        self,
        name_prefix: str = "",
        *,
        states: Collection[AdapterState] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = PAGE_SIZE,
    ) -> AsyncIterator[Adapter]:
        """All adapters by name, page by page, without the modules of their reports.

        Args:
            states: any of these; none = all but DELETED.
            labels: all of these.
        """
        request = adapter_pb2.ListAdaptersRequest(
            page_size=page_size, name_prefix=name_prefix, states=map(state_pb, states), labels=dict(labels or {})
        )
        while True:
            response = await self._call(self._adapters.ListAdapters, request)
            for pb in response.adapters:
                yield from_adapter.adapter(pb)
            request.page_token = response.next_page_token
            if not request.page_token:
                return

    async def watch_adapters(self, *, from_revision: int = 0) -> AsyncIterator[AdapterChanges]:
        """The list, then every change after it, until the iterator is closed.

        Args:
            from_revision: go on after this one, of an earlier watch; 0 = with the list.

        Raises:
            OutOfRange: that is too long ago (WATCH_COMPACTED): begin again at 0.
        """
        request = adapter_pb2.WatchAdaptersRequest(from_revision=from_revision)
        call = self._adapters.WatchAdapters(request, metadata=self._metadata)
        try:
            with errors_of(self.target):
                async for response in call:
                    yield from_adapter.changes(response)
        finally:
            call.cancel()

    async def unregister_adapter(
        self,
        name: str,
        *,
        cancel_running: bool = False,
        fail_if_in_use: bool = False,
        etag: str = "",
        request_id: str = "",
        timeout_s: float = INGEST_TIMEOUT_S,
    ) -> Adapter:
        """Answers when every worker has freed the bytes. Running requests finish first.

        Args:
            cancel_running: end them instead.
            fail_if_in_use: refuse instead (FailedPrecondition, ADAPTER_IN_USE).
        """
        request = adapter_pb2.UnregisterAdapterRequest(
            name=name,
            mode=unregister_mode(cancel_running=cancel_running, fail_if_in_use=fail_if_in_use),
            etag=etag,
            request_id=request_id,
        )
        response = await self._call(self._adapters.UnregisterAdapter, request, timeout_s)
        return from_adapter.adapter(response.adapter)
