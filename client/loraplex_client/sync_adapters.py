"""The adapters of a server, for programs without asyncio."""

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from loraplex_client.adapter import Adapter, AdapterState
from loraplex_client.adapter_changes import AdapterChanges
from loraplex_client.adapter_requests import AdapterSource
from loraplex_client.adapter_upload import AdapterUpload
from loraplex_client.async_adapters import INGEST_TIMEOUT_S
from loraplex_client.async_client import AsyncClient

_T = TypeVar("_T")


class SyncAdapters:
    """The part of ``Client`` that AdapterService answers. Arguments and errors are those of ``AsyncClient``."""

    _client: AsyncClient

    def call(self, work: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
        raise NotImplementedError

    def register_adapter(
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
        """As ``AsyncClient.register_adapter``."""
        return self.call(
            lambda client: client.register_adapter(
                name,
                source,
                allow_update=allow_update,
                validate_only=validate_only,
                expected_digest=expected_digest,
                labels=labels,
                description=description,
                expire_time=expire_time,
                request_id=request_id,
                timeout_s=timeout_s,
            )
        )

    def upload_adapter(self, folder: str | Path, *, upload_id: str = "") -> AdapterUpload:
        """Sends a folder of this machine, for ``register_adapter``."""
        return self.call(lambda client: client.upload_adapter(folder, upload_id=upload_id))

    def update_adapter(
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
        """Changes what is given and nothing else."""
        return self.call(
            lambda client: client.update_adapter(
                name,
                source=source,
                labels=labels,
                description=description,
                expire_time=expire_time,
                never_expires=never_expires,
                etag=etag,
                expected_digest=expected_digest,
                validate_only=validate_only,
                request_id=request_id,
                timeout_s=timeout_s,
            )
        )

    def get_adapter(self, name: str) -> Adapter:
        """Raises NotFound for a name that is not there."""
        return self.call(lambda client: client.get_adapter(name))

    def list_adapters(
        self, name_prefix: str = "", *, states: Collection[AdapterState] = (), labels: Mapping[str, str] | None = None
    ) -> Iterator[Adapter]:
        """All adapters by name, page by page."""
        yield from self._each(self._client.list_adapters(name_prefix, states=states, labels=labels))

    def watch_adapters(self, *, from_revision: int = 0) -> Generator[AdapterChanges, None, None]:
        """The list, then every change after it. Close the iterator to end it."""
        yield from self._each(self._client.watch_adapters(from_revision=from_revision))

    def unregister_adapter(
        self,
        name: str,
        *,
        cancel_running: bool = False,
        fail_if_in_use: bool = False,
        etag: str = "",
        request_id: str = "",
        timeout_s: float = INGEST_TIMEOUT_S,
    ) -> Adapter:
        """Answers when every worker has freed the bytes."""
        return self.call(
            lambda client: client.unregister_adapter(
                name,
                cancel_running=cancel_running,
                fail_if_in_use=fail_if_in_use,
                etag=etag,
                request_id=request_id,
                timeout_s=timeout_s,
            )
        )

    def _each(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        async def take(_: AsyncClient) -> _T | None:
            return await anext(items, None)

        async def close(_: AsyncClient) -> None:
            await items.aclose()  # type: ignore[attr-defined]  # every one of ours is a generator

        try:
            while (item := self.call(take)) is not None:
                yield item
        finally:
            self.call(close)
