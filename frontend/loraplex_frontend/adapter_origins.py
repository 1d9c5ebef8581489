"""Where a version's files come from, whatever that is, as a folder on this machine."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.adapter_order import AdapterOrigin
from loraplex_frontend.sources.remote_sources import RemoteSources
from loraplex_frontend.sources.source_uri import is_remote
from loraplex_frontend.uploads.upload_store import UploadStore


class AdapterOrigins:
    """Local folders below the allowed roots, finished uploads, and what the operator allows to be fetched."""

    def __init__(self, *, ingest: AdapterIngest, uploads: UploadStore, remote: RemoteSources) -> None:
        self._ingest = ingest
        self._uploads = uploads
        self._remote = remote

    def is_fetched(self, origin: AdapterOrigin) -> bool:
        """Whether the files have to come over the network first."""
        return is_remote(origin.uri)

    def check(self, origin: AdapterOrigin) -> None:
        """What can be known before anything is begun.

        Raises:
            InvalidArgument: no uri that this server understands (SOURCE_INVALID).
            PermissionDenied: not below a place that the operator allows (SOURCE_NOT_ALLOWED).
        """
        if self.is_fetched(origin):
            self._remote.check(origin.uri)
        elif origin.uri:
            self._ingest.folder_of(origin.uri)

    @contextlib.asynccontextmanager
    async def folder(self, origin: AdapterOrigin, tenant: str) -> AsyncIterator[Path]:
        """The files, as long as the context is open.

        Raises:
            InvalidArgument, PermissionDenied: as ``check``.
            NotFound, FailedPrecondition: no such upload, or not complete (UPLOAD_NOT_FOUND, UPLOAD_INCOMPLETE).
            LoraplexError: what a remote source does, as ``RemoteSources.fetched``.
        """
        if origin.upload_id:
            async with self._uploads.finished(origin.upload_id, tenant) as folder:
                yield folder
        elif self.is_fetched(origin):
            async with self._remote.fetched(origin.uri, tenant) as folder:
                yield folder
        else:
            yield self._ingest.folder_of(origin.uri)

    async def consume(self, origin: AdapterOrigin, tenant: str) -> None:
        """The version is registered: an upload has done its service."""
        if origin.upload_id:
            await self._uploads.discard(origin.upload_id, tenant)
