"""``loraplex.v1.AdapterService``: checks, then the store and the registry."""

from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex.worker.v1 import registry_pb2
from loraplex_contract import ids
from loraplex_contract.errors import Unsupported
from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.adapter_registration import SOURCE_NAME_PREFIX, AdapterRegistration
from loraplex_frontend.adapter_report import adapter_pb
from loraplex_frontend.principal import current_tenant
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.violations import Violations

_MAX_PAGE_SIZE: Final = 1_000
_MAX_PAGE_TOKEN_CHARS: Final = 1_024


class AdapterService(adapter_pb2_grpc.AdapterServiceServicer):
    """The life cycle of adapters, as far as this release has it; the rest is refused by name."""

    def __init__(self, *, ingest: AdapterIngest, registration: AdapterRegistration, registry: RegistryClient) -> None:
        self._ingest = ingest
        self._registration = registration
        self._registry = registry

    async def RegisterAdapter(
        self, request: adapter_pb2.RegisterAdapterRequest, context: Any
    ) -> adapter_pb2.RegisterAdapterResponse:
        _check_register(request)
        folder = self._ingest.folder_of(request.uri)
        if request.validate_only:
            adapter = await self._registration.validate(request.name, folder, request.expected_digest)
            adapter.labels.update(request.labels)
            return adapter_pb2.RegisterAdapterResponse(adapter=adapter)
        entry = await self._registration.register(
            tenant=current_tenant(),
            name=request.name,
            folder=folder,
            allow_update=request.allow_update,
            expected_digest=request.expected_digest,
            labels=request.labels,
        )
        return adapter_pb2.RegisterAdapterResponse(adapter=adapter_pb(entry))

    async def GetAdapter(self, request: adapter_pb2.GetAdapterRequest, context: Any) -> adapter_pb2.GetAdapterResponse:
        _check_name(request.name)
        entry = await self._registry.read(current_tenant(), request.name)
        return adapter_pb2.GetAdapterResponse(adapter=adapter_pb(entry))

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: Any
    ) -> adapter_pb2.ListAdaptersResponse:
        _check_list(request)
        page = await self._registry.list(
            registry_pb2.ListEntriesRequest(
                tenant=current_tenant(),
                page_size=request.page_size,
                page_token=request.page_token,
                name_prefix=request.name_prefix,
                states=request.states,
            )
        )
        adapters = [adapter_pb(entry, with_modules=False) for entry in page.entries]
        return adapter_pb2.ListAdaptersResponse(adapters=adapters, next_page_token=page.next_page_token)

    async def UnregisterAdapter(
        self, request: adapter_pb2.UnregisterAdapterRequest, context: Any
    ) -> adapter_pb2.UnregisterAdapterResponse:
        _check_name(request.name)
        if request.mode == adapter_pb2.UNREGISTER_MODE_FAIL_IF_IN_USE:
            _refuse("UNREGISTER_MODE_FAIL_IF_IN_USE")
        if request.mode not in adapter_pb2.UnregisterMode.values():
            found = Violations()
            found.add("mode", f"is {request.mode}, a mode that this server does not know")
            found.raise_if_any()
        remove = registry_pb2.RemoveEntryRequest(tenant=current_tenant(), name=request.name, mode=request.mode)
        entry = await self._registration.remove(remove, context.time_remaining())
        adapter = adapter_pb(entry)
        adapter.state = adapter_pb2.ADAPTER_STATE_DELETED
        return adapter_pb2.UnregisterAdapterResponse(adapter=adapter)

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        _refuse("UploadAdapter")

    async def UpdateAdapter(
        self, request: adapter_pb2.UpdateAdapterRequest, context: Any
    ) -> adapter_pb2.UpdateAdapterResponse:
        _refuse("UpdateAdapter")

    async def PinAdapter(self, request: adapter_pb2.PinAdapterRequest, context: Any) -> adapter_pb2.PinAdapterResponse:
        _refuse("PinAdapter")

    async def UnpinAdapter(
        self, request: adapter_pb2.UnpinAdapterRequest, context: Any
    ) -> adapter_pb2.UnpinAdapterResponse:
        _refuse("UnpinAdapter")

    async def WarmAdapter(
        self, request: adapter_pb2.WarmAdapterRequest, context: Any
    ) -> adapter_pb2.WarmAdapterResponse:
        _refuse("WarmAdapter")

    async def WatchAdapters(self, request: adapter_pb2.WatchAdaptersRequest, context: Any) -> None:  # type: ignore[override]
        _refuse("WatchAdapters")


def _refuse(feature: str) -> NoReturn:
    raise Unsupported(
        f"{feature} is not available in this release", reason="FEATURE_DISABLED", metadata={"feature": feature}
    )


def _check_name(name: str) -> None:
    found = Violations()
    _add_name(name, found)
    found.raise_if_any()


def _add_name(name: str, found: Violations) -> None:
    if not ids.is_adapter_name(name):
        found.add("name", f"is no adapter name: {ids.ADAPTER_NAME_RULE}")


def _check_register(request: adapter_pb2.RegisterAdapterRequest) -> None:
    if request.WhichOneof("source") == "upload_id":
        _refuse("upload_id")
    found = Violations()
    found.known_fields_only("request", request)
    _add_name(request.name, found)
    if request.name.startswith(SOURCE_NAME_PREFIX):
        found.add("name", f"must not begin with {SOURCE_NAME_PREFIX!r}: the server gives such names itself")
    if not request.uri:
        found.add("uri", "is missing: file:///folder", "SOURCE_INVALID")
    if request.expected_digest and not ids.is_digest(request.expected_digest):
        found.add("expected_digest", "must have 64 lower-case hex digits")
    found.labels("labels", request.labels)
    found.raise_if_any()


def _check_list(request: adapter_pb2.ListAdaptersRequest) -> None:
    found = Violations()
    found.known_fields_only("request", request)
    found.in_range("page_size", request.page_size, 0, _MAX_PAGE_SIZE)
    if len(request.page_token) > _MAX_PAGE_TOKEN_CHARS:
        found.add("page_token", "is not one that this server gave", "PAGE_TOKEN_INVALID")
    if request.name_prefix and not ids.is_adapter_name(request.name_prefix):
        found.add("name_prefix", f"no adapter name begins so: {ids.ADAPTER_NAME_RULE}")
    known = adapter_pb2.AdapterState.values()
    if not found.at_most("states", request.states, len(known)) or any(state not in known for state in request.states):
        found.add("states", "has a state that this server does not know")
    found.raise_if_any()
