"""``loraplex.v1.AdapterService``: checks, then the store and the registry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex.worker.v1 import registry_pb2
from loraplex_contract.errors import Aborted, ResourceExhausted
from loraplex_frontend import adapter_checks
from loraplex_frontend.adapter_checks import refuse_feature
from loraplex_frontend.adapter_order import VersionOrder, identity_of
from loraplex_frontend.adapter_registration import AdapterRegistration
from loraplex_frontend.adapter_report import adapter_pb
from loraplex_frontend.principal import current_tenant
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.uploads.upload_store import UploadStore
from loraplex_frontend.uploads.upload_stream import UploadStream

_WATCH_WRITE_S: Final = 30.0
"""A watch whose reader takes nothing for so long ends: it holds one of a bounded number of places."""


class AdapterService(adapter_pb2_grpc.AdapterServiceServicer):
    """The life cycle of adapters, as far as this release has it; the rest is refused by name."""

    def __init__(self, *, registration: AdapterRegistration, registry: RegistryClient, uploads: UploadStore) -> None:
        self._registration = registration
        self._registry = registry
        self._uploads = uploads

    async def RegisterAdapter(
        self, request: adapter_pb2.RegisterAdapterRequest, context: Any
    ) -> adapter_pb2.RegisterAdapterResponse:
        order = adapter_checks.register_order(request, current_tenant())
        if request.validate_only:
            version = await self._registration.validate(order)
            adapter = adapter_pb2.Adapter(name=order.name, state=adapter_pb2.ADAPTER_STATE_READY, version=version)
            _set_fields(adapter, order, adapter_checks.UPDATABLE)
            return adapter_pb2.RegisterAdapterResponse(adapter=adapter)
        entry = await self._registration.register(order)
        return adapter_pb2.RegisterAdapterResponse(adapter=adapter_pb(entry))

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        return await UploadStream(self._uploads, current_tenant()).take(request_iterator, context)

    async def GetAdapter(self, request: adapter_pb2.GetAdapterRequest, context: Any) -> adapter_pb2.GetAdapterResponse:
        adapter_checks.check_name(request.name)
        entry = await self._registry.read(current_tenant(), request.name)
        return adapter_pb2.GetAdapterResponse(adapter=adapter_pb(entry))

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: Any
    ) -> adapter_pb2.ListAdaptersResponse:
        adapter_checks.check_list(request)
        page = await self._registry.list(
            registry_pb2.ListEntriesRequest(
                tenant=current_tenant(),
                page_size=request.page_size,
                page_token=request.page_token,
                name_prefix=request.name_prefix,
                states=request.states,
                labels=request.labels,
            )
        )
        return adapter_pb2.ListAdaptersResponse(
            adapters=[adapter_pb(entry, with_modules=False) for entry in page.entries],
            next_page_token=page.next_page_token,
            revision=page.revision,
        )

    async def UpdateAdapter(
        self, request: adapter_pb2.UpdateAdapterRequest, context: Any
    ) -> adapter_pb2.UpdateAdapterResponse:
        order = adapter_checks.update_order(request, current_tenant())
        if request.validate_only:
            return adapter_pb2.UpdateAdapterResponse(adapter=await self._as_it_would_be(order))
        if order.origin.uri or order.origin.upload_id:
            entry = await self._registration.register(order)
        else:
            entry = await self._registry.update(_update_request(order))
        return adapter_pb2.UpdateAdapterResponse(adapter=adapter_pb(entry))

    async def _as_it_would_be(self, order: VersionOrder) -> adapter_pb2.Adapter:
        adapter = adapter_pb(await self._registry.read(order.tenant, order.name))
        if order.expected_revision and adapter.etag != f"{order.expected_revision}":
            message = f"etag: adapter {order.name!r} has changed since it was read; read it again, then decide"
            raise Aborted(message, reason="ETAG_MISMATCH", metadata={"adapter": order.name, "etag": adapter.etag})
        if order.origin.uri or order.origin.upload_id:
            adapter.version.CopyFrom(await self._registration.validate(order))
        _set_fields(adapter, order, order.fields or frozenset())
        return adapter

    async def UnregisterAdapter(
        self, request: adapter_pb2.UnregisterAdapterRequest, context: Any
    ) -> adapter_pb2.UnregisterAdapterResponse:
        adapter_checks.check_unregister(request)
        remove = registry_pb2.RemoveEntryRequest(
            tenant=current_tenant(),
            name=request.name,
            mode=request.mode,
            expected_revision=adapter_checks.revision_of(request.etag),
            identity=identity_of(request),
        )
        entry = await self._registration.remove(remove, context.time_remaining())
        adapter = adapter_pb(entry)
        adapter.state = adapter_pb2.ADAPTER_STATE_DELETED
        return adapter_pb2.UnregisterAdapterResponse(adapter=adapter)

    async def WatchAdapters(self, request: adapter_pb2.WatchAdaptersRequest, context: Any) -> None:  # type: ignore[override]
        adapter_checks.check_watch(request)
        watch = registry_pb2.WatchEntriesRequest(tenant=current_tenant(), from_revision=request.from_revision)
        async with contextlib.aclosing(self._registry.watch(watch)) as messages:
            async for message in messages:
                response = adapter_pb2.WatchAdaptersResponse(
                    revision=message.revision,
                    changed=[adapter_pb(entry, with_modules=False) for entry in message.changed],
                    list_complete=message.list_complete,
                )
                await _write(context, response)

    async def PinAdapter(self, request: adapter_pb2.PinAdapterRequest, context: Any) -> adapter_pb2.PinAdapterResponse:
        refuse_feature("PinAdapter")

    async def UnpinAdapter(
        self, request: adapter_pb2.UnpinAdapterRequest, context: Any
    ) -> adapter_pb2.UnpinAdapterResponse:
        refuse_feature("UnpinAdapter")

    async def WarmAdapter(
        self, request: adapter_pb2.WarmAdapterRequest, context: Any
    ) -> adapter_pb2.WarmAdapterResponse:
        refuse_feature("WarmAdapter")


async def _write(context: Any, response: adapter_pb2.WatchAdaptersResponse) -> None:
    try:
        async with asyncio.timeout(_WATCH_WRITE_S):
            await context.write(response)
    except TimeoutError:
        message = f"the watch was not read for {_WATCH_WRITE_S:g} s: read faster, or poll ListAdapters"
        raise ResourceExhausted(message, reason="SLOW_CONSUMER") from None


def _update_request(order: VersionOrder) -> registry_pb2.UpdateEntryRequest:
    request = registry_pb2.UpdateEntryRequest(
        tenant=order.tenant,
        name=order.name,
        labels=order.labels,
        description=order.description,
        expected_revision=order.expected_revision,
        identity=order.identity,
        expire_time=order.expire_time,
    )
    request.update_mask.paths.extend(sorted(order.fields or ()))
    return request


def _set_fields(adapter: adapter_pb2.Adapter, order: VersionOrder, fields: frozenset[str]) -> None:
    if "labels" in fields:
        adapter.labels.clear()
        adapter.labels.update(order.labels)
    if "description" in fields:
        adapter.description = order.description
    if "expire_time" in fields:
        adapter.ClearField("expire_time")
        if order.expire_time is not None:
            adapter.expire_time.CopyFrom(order.expire_time)
