"""Names over their whole life: the registry on disk and the catalog in the core, kept equal."""

import asyncio
import contextlib
import dataclasses

import structlog

from loraplex_contract.errors import FailedPrecondition, LoraplexError, NotFound
from loraplex_scheduler.core.event import AdapterCommitted, AdapterUnregistered, UnregisterMode
from loraplex_scheduler.core.statistics import CoreStatistics
from loraplex_scheduler.dispatch import Dispatcher
from loraplex_scheduler.registrations import Progress, Registration, Registrations
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.registry_entry import EntryChange, EntryState, NewVersion, RegistryEntry, RequestIdentity
from loraplex_scheduler.watch_history import WatchHistory

_log = structlog.get_logger(__name__)
Key = tuple[str, str]
MAX_EXPIRY_WAIT_S = 60.0
"""A clock that is set forward is noticed after this."""


class Adapters:
    """The registry is written first, then the core told: what was acknowledged survives a crash.

    Changes of all names happen one after the other, so that the history has them in the order of their revisions;
    ``run`` must run, since it ends unregistrations and begins those of names that expire.
    """

    def __init__(self, registry: Registry, dispatcher: Dispatcher) -> None:
        self.registry = registry
        self.history = WatchHistory(registry.revision)
        self.registrations = Registrations(lambda: registry.now_ns)
        self._dispatcher = dispatcher
        self._gone: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, asyncio.Future[list[str]]] = {}
        self._changing = asyncio.Lock()
        self._expiries_changed = asyncio.Event()
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

    async def report(
        self,
        tenant: str,
        name: str,
        *,
        attempt_id: str,
        state: Progress,
        error: LoraplexError | None = None,
        identity: RequestIdentity | None = None,
    ) -> tuple[int, RegistryEntry | None]:
        """What a registration has come to; its state is seen where the name has no version yet.

        Returns:
            The store's sequence, for the commit; and the entry, if this very request was carried out before.

        Raises:
            AlreadyExists: the request id belongs to another request (REQUEST_ID_REUSED).
            NotFound: this very request was carried out, and its name has been removed since.
        """
        sequence = await self.registry.store_sequence()
        async with self._changing:
            entry = await self.registry.find(tenant, name)
            if await self.registry.is_done(tenant, identity):
                return sequence, entry or await self.registry.get(tenant, name)
            known = self.registrations.get(tenant, name)
            is_superseded = known is not None and known.attempt_id != attempt_id and state is Progress.FAILED
            if entry is None and not is_superseded:
                await self._show(tenant, name, attempt_id, state, error)
        return sequence, None

    async def _show(
        self, tenant: str, name: str, attempt_id: str, state: Progress, error: LoraplexError | None
    ) -> None:
        now_ns = self.registry.now_ns
        registration = Registration(
            tenant=tenant,
            name=name,
            attempt_id=attempt_id,
            state=state,
            error=error,
            revision=await self.registry.next_revision(),
            began_ns=now_ns,
            updated_ns=now_ns,
        )
        self.registrations.put(registration)
        self.history.add(registration)

    async def commit(self, version: NewVersion) -> RegistryEntry:
        """Durable, and known to the core, when it returns. Raises as ``Registry.commit``."""
        async with self._changing:
            entry = await self.registry.commit(version)
            await self._dispatcher.apply(_committed(entry, entry.current.number))
            self.registrations.discard(version.tenant, version.name)
            self._publish(entry)
        return entry

    async def change(self, change: EntryChange) -> RegistryEntry:
        """Labels, description, expiry. Raises as ``Registry.change``."""
        async with self._changing:
            entry = await self.registry.change(change)
            self._publish(entry)
        return entry

    async def remove(
        self,
        tenant: str,
        name: str,
        mode: UnregisterMode,
        *,
        fail_if_in_use: bool = False,
        expected_revision: int = 0,
        identity: RequestIdentity | None = None,
    ) -> tuple[RegistryEntry, list[str]]:
        """Refuses new requests at once; returns when no worker has the bytes any more.

        Goes on if the caller gives up waiting. A name whose registration is under way, or was refused, is forgotten.

        Returns:
            The entry as it was, and the digests that no name points at any more.

        Raises:
            NotFound: there is no such name.
            FailedPrecondition: ``fail_if_in_use``, and a request holds it (ADAPTER_IN_USE).
            Aborted: the entry has another revision (ETAG_MISMATCH).
        """
        key = (tenant, name)
        async with self._changing:
            if fail_if_in_use:
                self._check_unused(await self.registry.get(tenant, name))
            entry = await self.registry.start_draining(
                tenant, name, expected_revision=expected_revision, identity=identity
            )
            done = self._waiting.setdefault(key, asyncio.get_running_loop().create_future())
            await self._dispatcher.apply(_unregistered(tenant, name, mode))
            self._publish(entry)
        return entry, await asyncio.shield(done)

    async def forget_registration(self, tenant: str, name: str) -> Registration:
        """Raises NotFound (ADAPTER_NOT_FOUND) if nobody tries to register this name."""
        async with self._changing:
            known = self.registrations.get(tenant, name)
            if known is None:
                message = f"adapter {name!r} is not registered"
                raise NotFound(message, reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
            self.registrations.discard(tenant, name)
            return known

    def _check_unused(self, entry: RegistryEntry) -> None:
        """Where the core does not say whose a lease is, it may be this one's."""
        statistics = self._dispatcher.statistics()
        leases = leases_by_digest(statistics)
        num_known = sum(leases.get(digest, 0) for digest in {version.digest for version in entry.versions})
        num_unknown = statistics.num_leases - sum(leases.values())
        if num_known or num_unknown > 0:
            message = f"adapter {entry.name!r} is in use: unregister it with DRAIN or CANCEL, or try again later"
            metadata = {"adapter": entry.name, "num_leases": f"{num_known + max(0, num_unknown)}"}
            raise FailedPrecondition(message, reason="ADAPTER_IN_USE", metadata=metadata)

    async def snapshot(self, tenant: str) -> tuple[int, list[RegistryEntry | Registration]]:
        """Everything of a tenant at one revision."""
        async with self._changing:
            entries: list[RegistryEntry | Registration] = []
            entries += await self.registry.load_all(tenant)
            known = {entry.name for entry in entries}
            pending = self.registrations.between(tenant, after="", name_prefix="", states=list(Progress), labels={})
            entries += [entry for entry in pending if entry.name not in known]
            return self.history.revision, entries

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forget_gone(), name="adapters/gone")
            tasks.create_task(self._expire(), name="adapters/expire")

    async def _forget_gone(self) -> None:
        """Names whose unregistration the core has completed."""
        while True:
            tenant, name = await self._gone.get()
            async with self._changing:
                entry = await self.registry.find(tenant, name)
                digests = await self.registry.delete(tenant, name)
                if entry is not None and entry.state is EntryState.DRAINING:
                    revision = await self.registry.next_revision()
                    self._publish(dataclasses.replace(entry, state=EntryState.DELETED, revision=revision))
            _log.info("adapter_gone", tenant=tenant, adapter=name, unreferenced=len(digests))
            done = self._waiting.pop((tenant, name), None)
            if done is not None and not done.done():
                done.set_result(digests)

    async def _expire(self) -> None:
        """An expired name is drained as if it had been unregistered."""
        while True:
            self._expiries_changed.clear()
            expiring = await self.registry.expiring()
            due = [key for key in expiring if key[0] <= self.registry.now_ns]
            for _, tenant, name in due:
                await self._drain_expired(tenant, name)
            if due:
                continue
            left_s = (expiring[0][0] - self.registry.now_ns) / 1e9 if expiring else MAX_EXPIRY_WAIT_S
            wait_s = min(MAX_EXPIRY_WAIT_S, max(0.0, left_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._expiries_changed.wait()

    async def _drain_expired(self, tenant: str, name: str) -> None:
        async with self._changing:
            entry = await self.registry.find(tenant, name)
            # It may have been removed, or given more time, since it was looked up.
            if entry is None or entry.expires_ns is None or entry.expires_ns > self.registry.now_ns:
                return
            entry = await self.registry.start_draining(tenant, name)
            await self._dispatcher.apply(_unregistered(tenant, name, UnregisterMode.DRAIN))
            self._publish(entry)
        _log.info("adapter_expired", tenant=tenant, adapter=name)

    def _publish(self, entry: RegistryEntry) -> None:
        """What changed nothing has no new revision."""
        if entry.revision > self.history.revision:
            self.history.add(entry)
            self._expiries_changed.set()


def leases_by_digest(statistics: CoreStatistics) -> dict[str, int]:
    """Of the versions that some worker knows."""
    return {adapter.digest: adapter.num_leases for worker in statistics.workers for adapter in worker.adapters}


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
