"""grpc.health.v1: "" is the process; each service is SERVING only while generation works."""

from typing import Any, Final

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

SERVICES: Final = (
    "loraplex.v1.InferenceService",
    "loraplex.v1.AdapterService",
    "loraplex.v1.ModelService",
    "loraplex.v1.TokenizerService",
)
ADMIN_SERVICES: Final = ("loraplex.admin.v1.ClusterService",)
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Owns the states; ``servicer`` answers from them."""

    def __init__(self) -> None:
        self.servicer: Final = HealthServicer()
        self._is_ready = False
        self._is_stopping = False

    async def start(self) -> None:
        await self.servicer.set("", _SERVING)
        await self._set_services(_NOT_SERVING)

    async def set_ready(self, is_ready: bool) -> None:
        """Whether the scheduler is connected and a worker is ready."""
        if is_ready != self._is_ready and not self._is_stopping:
            self._is_ready = is_ready
            await self._set_services(_SERVING if is_ready else _NOT_SERVING)

    async def stop(self) -> None:
        """First step of a shutdown: nobody is sent here any more."""
        self._is_stopping = True
        await self.servicer.set("", _NOT_SERVING)
        await self._set_services(_NOT_SERVING)

    async def _set_services(self, state: Any) -> None:
        for name in (*SERVICES, *ADMIN_SERVICES):
            await self.servicer.set(name, state)
