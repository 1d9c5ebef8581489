"""Names over their whole life: the registry on disk and the catalog in the core, kept equal."""

import asyncio

import structlog

from loraplex_scheduler.core.event import AdapterCommitted, AdapterUnregistered, UnregisterMode
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.registry import EntryState, NewVersion, Registry, RegistryEntry

_log = structlog.get_logger(__name__)
Key = tuple[str, str]


class Adapters:
    """The registry is written first, then the core told: what was acknowledged survives a crash.

    Changes of one name happen one after the other; ``run`` must run, since it ends unregistrations.
    """

    def __init__(self, registry: Registry, dispatcher: Dispatcher) -> None:
        self.registry = registry
        self._dispatcher = dispatcher
        self._gone: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, asyncio.Future[list[str]]] = {}
        self._changing = asyncio.Lock()
        dispatcher.on_gone = lambda tenant, name: self._gone.put_nowait((tenant, name))

    async def restore(self) -> None:
        """Tell the core everything that the registry knows, and go on with unregistrations that were under way."""
        entries = await self.registry.load_all()
        for entry in entries:
            for version in entry.versions:
                await self._dispatcher.post(_committed(entry, version.number))
            if entry.state is EntryState.DRAINING:
                await self._dispatcher.post(_unregistered(entry.tenant, entry.name, UnregisterMode.DRAIN))
        _log.info("registry_restored", num_adapters=len(entries))

    async def commit(self, version: NewVersion) -> RegistryEntry:
        """Durable, and known to the core, when it returns. Raises as ``Registry.commit``."""
        async with self._changing:
            entry = await self.registry.commit(version)
            await self._dispatcher.apply(_committed(entry, entry.current.number))
        return entry

    async def remove(self, tenant: str, name: str, mode: UnregisterMode) -> tuple[RegistryEntry, list[str]]:
        """Refuses new requests at once; returns when no worker has the bytes any more.

        Goes on if the caller gives up waiting.

        Returns:
            The entry as it was, and the digests that no name points at any more.

        Raises:
            NotFound: there is no such name.
        """
        key = (tenant, name)
        async with self._changing:
            entry = await self.registry.start_draining(tenant, name)
            done = self._waiting.setdefault(key, asyncio.get_running_loop().create_future())
            await self._dispatcher.apply(_unregistered(tenant, name, mode))
        return entry, await asyncio.shield(done)

    async def run(self) -> None:
        """Until cancelled: forget names whose unregistration the core has completed."""
        while True:
            tenant, name = await self._gone.get()
            digests = await self.registry.delete(tenant, name)
            _log.info("adapter_gone", tenant=tenant, adapter=name, unreferenced=len(digests))
            done = self._waiting.pop((tenant, name), None)
            if done is not None and not done.done():
                done.set_result(digests)


def _committed(entry: RegistryEntry, number: int) -> AdapterCommitted:
    version = next(version for version in entry.versions if version.number == number)
    return AdapterCommitted(
        tenant=entry.tenant,
        name=entry.name,
        number=number,
        digest=version.digest,
        num_parameters=version.num_parameters,
    )


def _unregistered(tenant: str, name: str, mode: UnregisterMode) -> AdapterUnregistered:
    return AdapterUnregistered(tenant=tenant, name=name, mode=mode)
