"""The real processes around the watermark model, and adapters that move while they serve."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc

from loraplex.admin.v1 import cluster_pb2, cluster_pb2_grpc
from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from tests.e2e.conftest import is_serving
from tests.e2e.processes import cluster, wait_until
from tests.e2e.scrape import Scrape
from tests.lifecycle.ledger import Ledger
from tests.lifecycle.watermark import Watermarks

METRICS = ("--metrics-listen", "127.0.0.1:0")
PAGE_BYTES = 16 * 2 * 2 * 64 * 4
"""16 tokens, keys and values, two layers, 64 features, fp32."""


class LifecycleService:
    """One of each process on free loopback ports, and a folder below which adapters may be registered."""

    def __init__(self, *, address: str, admin_address: str, metrics_address: str, roots: Path, store: Path) -> None:
        self.address = address
        self.admin_address = admin_address
        self.metrics_address = metrics_address
        self.roots = roots
        self.store = store

    def scrape(self) -> Scrape:
        """The worker's metrics."""
        return Scrape(self.metrics_address)

    def store_bytes(self) -> int:
        """All files in the store whose content is a version's."""
        return sum(_num_bytes(path) for path in self.store.rglob("*") if ".lock" not in path.name)


def _num_bytes(path: Path) -> int:
    """0 for folders and for what is just being deleted."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def lifecycle_service(
    folder: Path, model: Path, *, pool_pages: int, host_cache_bytes: int, frontend_flags: tuple[str, ...] = ()
) -> Iterator[LifecycleService]:
    """Returns when it serves; every process is gone at the end."""
    roots = folder / "adapters"
    with cluster(folder, model) as running:
        roots.mkdir()
        running.start_scheduler()
        port_file = folder / "worker.port.json"
        pool = ("--kv-pool-bytes", str(pool_pages * PAGE_BYTES), "--host-cache-bytes", str(host_cache_bytes))
        worker = running.start_worker(
            "--dtype", "fp32", "--num-threads", "1", *pool, *METRICS, "--port-file", str(port_file)
        )
        ports = running.start_frontend("--adapter-roots", str(roots), *frontend_flags).ports()
        wait_until(lambda: is_serving(ports["listen"]), 60, "the service serves")
        yield LifecycleService(
            address=ports["listen"],
            admin_address=ports["admin_listen"],
            metrics_address=worker.ports()["metrics"],
            roots=roots,
            store=running.store,
        )


class Registrar:
    """The one who registers and updates, and writes down what each name pointed at. Each version is a new watermark."""

    def __init__(self, service: LifecycleService, channel: grpc.aio.Channel, watermarks: Watermarks) -> None:
        self._service = service
        self._stub: Any = adapter_pb2_grpc.AdapterServiceStub(channel)
        self._watermarks = watermarks
        self.num_versions = 0
        self.ledger = Ledger()

    async def point(self, name: str) -> str:
        """``name`` points at a new version from now on; its digest."""
        token = self._watermarks.token(self.num_versions)
        folder = self._service.roots / str(self.num_versions)
        self.num_versions += 1
        await asyncio.to_thread(self._watermarks.save_adapter, folder, token)
        asked_ns = time.monotonic_ns()
        request = adapter_pb2.RegisterAdapterRequest(name=name, uri=folder.as_uri(), allow_update=True)
        digest: str = (await self._stub.RegisterAdapter(request, timeout=30)).adapter.version.digest
        self.ledger.point(name, digest=digest, token=token, asked_ns=asked_ns, acknowledged_ns=time.monotonic_ns())
        await asyncio.to_thread(shutil.rmtree, folder)
        return digest

    async def unregister(self, name: str) -> None:
        """Returns when every worker has freed it."""
        await self._stub.UnregisterAdapter(adapter_pb2.UnregisterAdapterRequest(name=name), timeout=60)

    async def num_leases(self) -> int:
        """Of all versions, the older ones too."""
        answer = await self._stub.ListAdapters(adapter_pb2.ListAdaptersRequest(page_size=1000), timeout=10)
        return sum(
            version.num_leases for adapter in answer.adapters for version in (adapter.version, *adapter.older_versions)
        )


@contextlib.asynccontextmanager
async def registrar(service: LifecycleService, watermarks: Watermarks) -> AsyncIterator[Registrar]:
    async with grpc.aio.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
        yield Registrar(service, channel, watermarks)


async def worker_state(service: LifecycleService) -> cluster_pb2.Worker:
    """What the scheduler's ledger says of the only worker."""
    async with grpc.aio.insecure_channel(service.admin_address, options=CLIENT_OPTIONS) as channel:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        (worker,) = (await stub.GetCluster(cluster_pb2.GetClusterRequest(), timeout=10)).workers
        result: cluster_pb2.Worker = worker
        return result
