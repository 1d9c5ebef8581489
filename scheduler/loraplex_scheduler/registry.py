"""The durable truth about names: which versions each has, and whether it is on its way out.

SQLAlchemy Core over SQLite (WAL, synchronous FULL: an acknowledged commit survives kill -9 and power loss) or another
database by URL. Everything runs on one thread of the registry's own: one writer, and the event loop never waits.
"""

import asyncio
import concurrent.futures
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.event import listen

from loraplex_contract.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from loraplex_scheduler import registry_garbage, registry_pages, registry_requests
from loraplex_scheduler.registry_entry import (
    Claim,
    EntryChange,
    EntryState,
    NewVersion,
    Page,
    RegistryEntry,
    RequestIdentity,
)
from loraplex_scheduler.registry_tables import (
    ADAPTERS,
    COUNTERS,
    LABELS,
    TERMS,
    VERSIONS,
    insert_labels,
    prepare,
    where,
)

T = TypeVar("T")
_LEAST_REVISIONS: Final = 8
_REVISION_BLOCK: Final = 10_000
"""Revisions are reserved on disk in blocks: none is given twice, also those of changes that are not written."""


class Registry:
    """Use as an async context manager; every change is durable when its method returns.

    Args:
        clock: the wall clock in nanoseconds since 1970.
    """

    def __init__(self, url: str, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._engine = sa.create_engine(url)
        self._clock = clock
        if self._engine.dialect.name == "sqlite":
            listen(self._engine, "connect", _make_durable)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry")
        self.revision = 0
        """Of the last change, of whatever kind."""
        self._reserved_revision = 0
        self._is_ready = False

    async def __aenter__(self) -> "Registry":
        await self._run(prepare)
        await self._run(self._start_revisions)
        self._is_ready = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    @property
    def now_ns(self) -> int:
        return self._clock()

    async def begin_term(self) -> int:
        """A number larger than any scheduler on this registry had before: what epochs are counted from."""
        return await self._run(_begin_term)

    async def next_revision(self) -> int:
        """For a change that is not written, such as the progress of a registration."""
        return await self._run(self._next_revision)

    async def commit(self, version: NewVersion) -> RegistryEntry:
        """Point a name at a version. Idempotent for the digest that is current.

        Raises:
            AlreadyExists: the name has another digest and ``allow_update`` is not set (ADAPTER_EXISTS), or the request
                id belongs to another request (REQUEST_ID_REUSED).
            FailedPrecondition: the name is being unregistered (ADAPTER_DRAINING).
            NotFound: ``must_exist``, and it does not.
            Aborted: the revision is not the expected one (ETAG_MISMATCH), or the bytes may be gone (STORE_CHANGED).
        """
        return await self._run(lambda connection: self._commit(connection, version))

    async def change(self, change: EntryChange) -> RegistryEntry:
        """Raises NotFound, FailedPrecondition and Aborted as ``commit``."""
        return await self._run(lambda connection: self._change(connection, change))

    async def get(self, tenant: str, name: str) -> RegistryEntry:
        """Raises NotFound (ADAPTER_NOT_FOUND)."""
        return await self._run(lambda connection: registry_pages.get(connection, tenant, name))

    async def find(self, tenant: str, name: str) -> RegistryEntry | None:
        return await self._run(lambda connection: registry_pages.find(connection, tenant, name))

    async def list_page(
        self,
        tenant: str,
        *,
        page_size: int,
        page_token: str,
        name_prefix: str,
        states: Sequence[EntryState],
        labels: Mapping[str, str] | None = None,
    ) -> Page:
        """By name, without reports. Raises InvalidArgument for a bad page size or token."""
        size, after = registry_pages.checked_page_size(page_size), registry_pages.decode_token(page_token)
        return await self._run(
            lambda connection: registry_pages.list_page(
                connection,
                tenant,
                page_size=size,
                after=after,
                name_prefix=name_prefix,
                states=states,
                labels=labels or {},
            )
        )

    async def start_draining(
        self, tenant: str, name: str, *, expected_revision: int = 0, identity: RequestIdentity | None = None
    ) -> RegistryEntry:
        """Idempotent. Raises NotFound (ADAPTER_NOT_FOUND) and Aborted (ETAG_MISMATCH)."""
        return await self._run(
            lambda connection: self._start_draining(connection, tenant, name, expected_revision, identity)
        )

    async def delete(self, tenant: str, name: str) -> list[str]:
        """Forget a name that is draining; returns the digests that no name points at any more, which become garbage.

        A name that is gone, or registered anew since, stays as it is: the answer to an unregistration may come twice.
        """
        return await self._run(lambda connection: _delete(connection, tenant, name))

    async def is_done(self, tenant: str, identity: RequestIdentity | None) -> bool:
        """Whether this very request has succeeded. Raises AlreadyExists (REQUEST_ID_REUSED)."""
        now_ns = self._clock()
        return await self._run(
            lambda connection: registry_requests.is_done(connection, tenant, identity, now_ns=now_ns)
        )

    async def store_sequence(self) -> int:
        """Of the last claim on garbage; see ``registry_garbage``."""
        return await self._run(registry_garbage.store_sequence)

    async def claim_garbage(self, digests: Collection[str] = ()) -> Claim:
        """The right to delete these, or any, as far as nobody else has it."""
        now_ns = self._clock()
        return await self._run(lambda connection: registry_garbage.claim(connection, digests, now_ns=now_ns))

    async def confirm_deleted(self, claim: int, digests: Collection[str]) -> None:
        await self._run(lambda connection: registry_garbage.confirm(connection, claim, digests))

    async def expiring(self) -> list[tuple[int, str, str]]:
        """The next names to expire: (when in wall clock ns, tenant, name), soonest first."""
        return await self._run(_expiring)

    async def load_all(self, tenant: str | None = None) -> list[RegistryEntry]:
        """Everything, without reports: for a scheduler that starts, or for a watch of one tenant."""
        return await self._run(lambda connection: registry_pages.load_all(connection, tenant))

    async def _run(self, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        if self._is_ready and self._reserved_revision - self.revision < _LEAST_REVISIONS:
            self._reserve_revisions()
        with self._engine.begin() as connection:
            return work(connection)

    # --- on the registry's thread ---

    def _start_revisions(self, connection: sa.Connection) -> None:
        reserved = connection.execute(sa.select(COUNTERS.c.value).where(COUNTERS.c.name == "revision")).scalar()
        written = connection.execute(sa.select(sa.func.max(ADAPTERS.c.revision))).scalar()
        # Never 0, which asks a watch for the list.
        self.revision = self._reserved_revision = max(reserved or 1, written or 1)

    def _next_revision(self, _: sa.Connection | None = None) -> int:
        self.revision += 1
        assert self.revision <= self._reserved_revision, "one transaction took more revisions than are kept ready"
        return self.revision

    def _reserve_revisions(self) -> None:
        """In a transaction of its own: what follows may be rolled back, its revision stays given."""
        reserved = self.revision + _REVISION_BLOCK
        with self._engine.begin() as connection:
            connection.execute(sa.delete(COUNTERS).where(COUNTERS.c.name == "revision"))
            connection.execute(sa.insert(COUNTERS).values(name="revision", value=reserved))
        self._reserved_revision = reserved

    def _commit(self, connection: sa.Connection, new: NewVersion) -> RegistryEntry:
        now_ns = self._clock()
        existing = registry_pages.find(connection, new.tenant, new.name)
        if registry_requests.is_done(connection, new.tenant, new.identity, now_ns=now_ns):
            return existing or registry_pages.get(connection, new.tenant, new.name)
        _check_may_commit(existing, new)
        if new.store_sequence is not None:
            registry_garbage.check_commit(connection, new.digest, new.store_sequence)
        if existing is None:
            self._insert_entry(connection, new, now_ns)
        elif existing.current.digest == new.digest and not new.must_exist:
            registry_requests.remember(connection, new.tenant, new.name, new.identity, now_ns=now_ns)
            return existing
        else:
            self._write_fields(connection, new.tenant, new.name, new, now_ns)
        if existing is None or existing.current.digest != new.digest:
            number = existing.current.number + 1 if existing else 1
            connection.execute(sa.insert(VERSIONS).values(_version_row(new, number, now_ns)))
            registry_garbage.rescue(connection, new.digest)
        registry_requests.remember(connection, new.tenant, new.name, new.identity, now_ns=now_ns)
        return registry_pages.get(connection, new.tenant, new.name)

    def _insert_entry(self, connection: sa.Connection, new: NewVersion, now_ns: int) -> None:
        row = {
            "tenant": new.tenant,
            "name": new.name,
            "state": EntryState.READY.value,
            "labels": json.dumps(dict(new.labels)),
            "revision": self._next_revision(),
            "created_ns": now_ns,
            "updated_ns": now_ns,
            "description": new.description,
            "expires_ns": new.expires_ns,
        }
        connection.execute(sa.insert(ADAPTERS).values(row))
        insert_labels(connection, new.tenant, new.name, dict(new.labels))

    def _write_fields(
        self, connection: sa.Connection, tenant: str, name: str, change: NewVersion | EntryChange, now_ns: int
    ) -> None:
        values: dict[str, object] = {"updated_ns": now_ns, "revision": self._next_revision()}
        if "labels" in change.fields:
            values["labels"] = json.dumps(dict(change.labels))
            connection.execute(sa.delete(LABELS).where(where(LABELS, tenant, name)))
            insert_labels(connection, tenant, name, dict(change.labels))
        if "description" in change.fields:
            values["description"] = change.description
        if "expire_time" in change.fields:
            values["expires_ns"] = change.expires_ns
        connection.execute(sa.update(ADAPTERS).where(where(ADAPTERS, tenant, name)).values(values))

    def _change(self, connection: sa.Connection, change: EntryChange) -> RegistryEntry:
        now_ns = self._clock()
        entry = registry_pages.get(connection, change.tenant, change.name)
        if registry_requests.is_done(connection, change.tenant, change.identity, now_ns=now_ns):
            return entry
        _check_is_ready(entry)
        _check_revision(entry, change.expected_revision)
        self._write_fields(connection, change.tenant, change.name, change, now_ns)
        registry_requests.remember(connection, change.tenant, change.name, change.identity, now_ns=now_ns)
        return registry_pages.get(connection, change.tenant, change.name)

    def _start_draining(
        self,
        connection: sa.Connection,
        tenant: str,
        name: str,
        expected_revision: int,
        identity: RequestIdentity | None,
    ) -> RegistryEntry:
        now_ns = self._clock()
        entry = registry_pages.get(connection, tenant, name)
        if entry.state is EntryState.DRAINING:
            return entry
        _check_revision(entry, expected_revision)
        changed = {
            "state": EntryState.DRAINING.value,
            "revision": self._next_revision(),
            "updated_ns": now_ns,
        }
        connection.execute(sa.update(ADAPTERS).where(where(ADAPTERS, tenant, name)).values(changed))
        registry_requests.remember(connection, tenant, name, identity, now_ns=now_ns)
        return registry_pages.get(connection, tenant, name)


def _make_durable(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=5000")


def _begin_term(connection: sa.Connection) -> int:
    last = connection.execute(sa.select(sa.func.max(TERMS.c.term))).scalar() or 0
    connection.execute(sa.delete(TERMS))
    connection.execute(sa.insert(TERMS).values(term=last + 1))
    return int(last) + 1


def _check_may_commit(existing: RegistryEntry | None, new: NewVersion) -> None:
    if existing is None:
        if new.must_exist:
            message = f"adapter {new.name!r} is not registered: register it first, or correct the name"
            raise NotFound(message, reason="ADAPTER_NOT_FOUND", metadata={"adapter": new.name})
        return
    _check_is_ready(existing)
    _check_revision(existing, new.expected_revision)
    if existing.current.digest != new.digest and not new.allow_update:
        raise _name_taken(existing, new)


def _check_is_ready(entry: RegistryEntry) -> None:
    if entry.state is EntryState.DRAINING:
        message = f"adapter {entry.name!r} is being unregistered; wait until it is gone, or take another name"
        raise FailedPrecondition(message, reason="ADAPTER_DRAINING", metadata={"adapter": entry.name})


def _check_revision(entry: RegistryEntry, expected: int) -> None:
    if expected and expected != entry.revision:
        message = f"etag: adapter {entry.name!r} has changed since it was read; read it again, then decide"
        raise Aborted(message, reason="ETAG_MISMATCH", metadata={"adapter": entry.name, "etag": f"{entry.revision}"})


def _name_taken(existing: RegistryEntry, new: NewVersion) -> AlreadyExists:
    message = (
        f"adapter {new.name!r} is registered with another digest, {existing.current.digest[:12]}; "
        "set allow_update to make this its next version, or take another name"
    )
    metadata = {"adapter": new.name, "digest": existing.current.digest}
    return AlreadyExists(message, reason="ADAPTER_EXISTS", metadata=metadata)


def _version_row(new: NewVersion, number: int, now_ns: int) -> dict[str, object]:
    return {
        "tenant": new.tenant,
        "name": new.name,
        "number": number,
        "digest": new.digest,
        "num_bytes": new.num_bytes,
        "num_parameters": new.num_parameters,
        "report": new.report_json,
        "summary": new.summary,
        "created_ns": now_ns,
    }


def _delete(connection: sa.Connection, tenant: str, name: str) -> list[str]:
    entry = registry_pages.find(connection, tenant, name)
    if entry is None or entry.state is not EntryState.DRAINING:
        return []
    for table in (VERSIONS, LABELS, ADAPTERS):
        connection.execute(sa.delete(table).where(where(table, tenant, name)))
    digests = registry_garbage.unreferenced(connection, {version.digest for version in entry.versions})
    registry_garbage.add(connection, digests)
    return digests


def _expiring(connection: sa.Connection) -> list[tuple[int, str, str]]:
    query = sa.select(ADAPTERS.c.expires_ns, ADAPTERS.c.tenant, ADAPTERS.c.name)
    query = query.where(ADAPTERS.c.expires_ns.is_not(None), ADAPTERS.c.state == EntryState.READY.value)
    rows = connection.execute(query.order_by(ADAPTERS.c.expires_ns).limit(100)).all()
    return [(row.expires_ns, row.tenant, row.name) for row in rows]


__all__ = [
    "Claim",
    "EntryChange",
    "EntryState",
    "NewVersion",
    "Page",
    "Registry",
    "RegistryEntry",
    "RequestIdentity",
]
