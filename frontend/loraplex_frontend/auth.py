"""Who may call what: one interceptor for all four shapes of calls, and the table of scopes.

Health and reflection need no credential: probes have none, and the schema is public.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from loraplex_contract.errors import LoraplexError, PermissionDenied, Unauthenticated
from loraplex_contract.ids import DEFAULT_TENANT
from loraplex_frontend.auth_keys import AuthKeys
from loraplex_frontend.principal import ALL_SCOPES, Principal, set_principal

SCOPES: Final[dict[str, str]] = {
    "loraplex.v1.InferenceService/Submit": "inference.submit",
    "loraplex.v1.InferenceService/SubmitStream": "inference.submit",
    "loraplex.v1.InferenceService/Session": "inference.submit",
    "loraplex.v1.InferenceService/Attach": "inference.submit",
    "loraplex.v1.InferenceService/Cancel": "inference.submit",
    "loraplex.v1.AdapterService/RegisterAdapter": "adapters.write",
    "loraplex.v1.AdapterService/UploadAdapter": "adapters.write",
    "loraplex.v1.AdapterService/GetAdapter": "adapters.read",
    "loraplex.v1.AdapterService/ListAdapters": "adapters.read",
    "loraplex.v1.AdapterService/UpdateAdapter": "adapters.write",
    "loraplex.v1.AdapterService/UnregisterAdapter": "adapters.write",
    "loraplex.v1.AdapterService/PinAdapter": "adapters.write",
    "loraplex.v1.AdapterService/UnpinAdapter": "adapters.write",
    "loraplex.v1.AdapterService/WarmAdapter": "adapters.write",
    "loraplex.v1.AdapterService/WatchAdapters": "adapters.read",
    "loraplex.v1.ModelService/GetServerInfo": "models.read",
    "loraplex.v1.ModelService/GetModel": "models.read",
    "loraplex.v1.ModelService/ListModels": "models.read",
    "loraplex.v1.TokenizerService/Tokenize": "inference.submit",
    "loraplex.v1.TokenizerService/Detokenize": "inference.submit",
    "loraplex.v1.TokenizerService/RenderChat": "inference.submit",
    "loraplex.admin.v1.ClusterService/GetCluster": "cluster.admin",
    "loraplex.admin.v1.ClusterService/DrainWorker": "cluster.admin",
    "loraplex.admin.v1.ClusterService/UndrainWorker": "cluster.admin",
    "loraplex.admin.v1.ClusterService/DrainFrontend": "cluster.admin",
}
"""By full method name. A method that is not here is refused to everybody."""

OPEN_SERVICES: Final = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
)
_EVERYBODY: Final = Principal(tenant=DEFAULT_TENANT, scopes=ALL_SCOPES)
_PREFIX: Final = "bearer "


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Goes inside the error interceptor, which turns its refusals into statuses.

    Args:
        keys: None lets everybody in as the tenant "default" with every scope.
    """

    def __init__(self, keys: AuthKeys | None) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        try:
            principal = self._authorize(handler_call_details)
        except LoraplexError as error:
            return _with_behaviour(handler, _Refusal(error))
        return _with_behaviour(handler, lambda method: _as_principal(method, principal))

    def _authorize(self, details: Any) -> Principal:
        """Raises Unauthenticated or PermissionDenied."""
        method = str(details.method).lstrip("/")
        if method.rpartition("/")[0] in OPEN_SERVICES:
            return _EVERYBODY
        principal = _EVERYBODY if self._keys is None else self._authenticate(self._keys, details.invocation_metadata)
        scope = SCOPES.get(method)
        if scope is None or scope not in principal.scopes:
            message = f"the credential lacks the scope {scope!r} that this method needs"
            raise PermissionDenied(message, reason="SCOPE_MISSING", metadata={"scope": scope or ""})
        return principal

    def _authenticate(self, keys: AuthKeys, metadata: Any) -> Principal:
        values = [value for key, value in metadata or () if key == "authorization"]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_PREFIX):
            message = "this server needs exactly one 'authorization: Bearer <token>' in the call's metadata"
            raise Unauthenticated(message, reason="CREDENTIALS_MISSING")
        principal = keys.principal_of(values[0][len(_PREFIX) :].strip())
        if principal is None:
            raise Unauthenticated("the bearer token is not known to this server", reason="CREDENTIALS_INVALID")
        return principal


class _Refusal:
    """Makes handlers that raise instead of answering."""

    def __init__(self, error: LoraplexError) -> None:
        self._error = error

    def __call__(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def refuse(request: Any, context: Any) -> Any:
            raise self._error

        return refuse


def _as_principal(method: Callable[..., Any], principal: Principal) -> Callable[..., Any]:
    """Both kinds of handler: a coroutine, and an asynchronous generator."""

    async def call(request: Any, context: Any) -> Any:
        set_principal(principal)
        result = method(request, context)
        if not hasattr(result, "__aiter__"):
            return await result
        async for response in result:
            await context.write(response)

    return call


def _with_behaviour(handler: Any, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    arity = ("stream" if handler.request_streaming else "unary") + "_"
    arity += "stream" if handler.response_streaming else "unary"
    make = getattr(grpc, f"{arity}_rpc_method_handler")
    return make(change(getattr(handler, arity)), handler.request_deserializer, handler.response_serializer)
