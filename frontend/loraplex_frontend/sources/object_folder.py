"""An adapter in an object store. Credentials are the operator's: those of the provider's own environment variables."""

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import AsyncIterator
from typing import Any

import obstore
from obstore import store as stores
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from loraplex_frontend.sources import source_errors
from loraplex_frontend.sources.opened_file import OpenedFile
from loraplex_frontend.sources.source_limits import SourceLimits
from loraplex_frontend.sources.source_uri import SourceUri

_CHUNK_BYTES = 256 << 10
_MAX_RETRIES = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreSettings:
    """Addresses of the stores. Empty: the provider's own."""

    s3_endpoint: str = ""
    gs_endpoint: str = ""
    az_endpoint: str = ""


class ObjectFolder:
    """A prefix in one bucket or container."""

    def __init__(self, uri: SourceUri, *, settings: ObjectStoreSettings, limits: SourceLimits) -> None:
        self._uri = uri
        self._limits = limits
        try:
            self._store = _store_of(uri, settings, limits)
        except (BaseError, ValueError):
            raise source_errors.denied() from None

    @contextlib.asynccontextmanager
    async def open(self, file_name: str) -> AsyncIterator[OpenedFile]:
        with _store_errors(file_name):
            async with asyncio.timeout(self._limits.connect_s + self._limits.read_s):
                result = await obstore.get_async(self._store, "/".join([*self._uri.path, file_name]))
            num_bytes = result.meta["size"]
        yield OpenedFile(chunks=_chunks(result, file_name), num_bytes=num_bytes)


def _store_of(uri: SourceUri, settings: ObjectStoreSettings, limits: SourceLimits) -> Any:
    endpoint = {"s3": settings.s3_endpoint, "gs": settings.gs_endpoint, "az": settings.az_endpoint}[uri.scheme]
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": datetime.timedelta(seconds=limits.connect_s),
            "timeout": datetime.timedelta(seconds=limits.total_s),
        },
        "retry_config": {
            "max_retries": _MAX_RETRIES,
            "retry_timeout": datetime.timedelta(seconds=limits.read_s),
        },
    }
    if endpoint:
        options["base_url" if uri.scheme == "gs" else "endpoint"] = endpoint
    make: Any = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[uri.scheme]
    return make(uri.authority, **options)


async def _chunks(result: Any, file_name: str) -> AsyncIterator[bytes]:
    with _store_errors(file_name):
        async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
            yield bytes(chunk)


@contextlib.contextmanager
def _store_errors(file_name: str) -> Any:
    try:
        yield
    except TimeoutError:
        raise source_errors.too_slow("did not answer in time") from None
    except FileNotFoundError:
        raise source_errors.not_found(file_name) from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise source_errors.denied() from None
    except (BaseError, OSError):
        raise source_errors.broken("cannot be reached, or broke off") from None
