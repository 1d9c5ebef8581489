"""``loraplex.admin.v1.ClusterService``: for operators, on the admin address only."""

from typing import Any, NoReturn

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.worker.v1 import registry_pb2
from loraplex_contract.errors import Unsupported
from loraplex_frontend.registry_client import RegistryClient


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, *, registry: RegistryClient) -> None:
        self._registry = registry

    async def GetCluster(self, request: cluster_pb2.GetClusterRequest, context: Any) -> cluster_pb2.GetClusterResponse:
        state = await self._registry.cluster()
        return cluster_pb2.GetClusterResponse(
            workers=[_worker_pb(worker) for worker in state.workers],
            num_queued_requests=state.summary.num_queued,
            num_running_requests=state.summary.num_running,
            epoch=state.epoch,
        )

    async def DrainWorker(
        self, request: cluster_pb2.DrainWorkerRequest, context: Any
    ) -> cluster_pb2.DrainWorkerResponse:
        _refuse("DrainWorker")

    async def UndrainWorker(
        self, request: cluster_pb2.UndrainWorkerRequest, context: Any
    ) -> cluster_pb2.UndrainWorkerResponse:
        _refuse("UndrainWorker")

    async def DrainFrontend(
        self, request: cluster_pb2.DrainFrontendRequest, context: Any
    ) -> cluster_pb2.DrainFrontendResponse:
        _refuse("DrainFrontend")


def _worker_pb(state: registry_pb2.WorkerState) -> cluster_pb2.Worker:
    return cluster_pb2.Worker(
        worker_id=state.worker_id,
        device=state.device,
        num_pages_total=state.num_pages_total,
        num_pages_free=state.num_pages_free,
        num_pages_kv=state.num_pages_kv,
        num_pages_adapter=state.num_pages_adapter,
        num_running_sequences=state.num_running_sequences,
        adapters=[
            cluster_pb2.ResidentAdapter(
                digest=adapter.digest, num_pages=adapter.num_pages, num_leases=adapter.num_leases
            )
            for adapter in state.adapters
        ],
        num_steps=state.num_steps,
        num_mixed_steps=state.num_mixed_steps,
        max_adapters_in_step=state.max_adapters_in_step,
        num_output_tokens=state.num_output_tokens,
    )


def _refuse(feature: str) -> NoReturn:
    raise Unsupported(
        f"{feature} is not available in this release", reason="FEATURE_DISABLED", metadata={"feature": feature}
    )
