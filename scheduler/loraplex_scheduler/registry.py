"""The durable truth about names: which versions each has, and whether it is on its way out.

SQLAlchemy Core over SQLite (WAL, synchronous FULL: an acknowledged commit survives kill -9 and power loss) or another
database by URL. Everything runs on one thread of the registry's own: one writer, and the event loop never waits.
"""

import asyncio
import base64
import binascii
import concurrent.futures
import dataclasses
import enum
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.event import listen

from loraplex_contract.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

T = TypeVar("T")
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 50

_metadata = sa.MetaData()
_adapters = sa.Table(
    "adapters",
    _metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
)
_versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_parameters", sa.BigInteger, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)
_terms = sa.Table("terms", _metadata, sa.Column("term", sa.BigInteger, primary_key=True))


class EntryState(enum.Enum):
    READY = "READY"
    DRAINING = "DRAINING"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """One artifact that a name points at, or has pointed at."""

    number: int
    digest: str
    num_bytes: int
    """Of the artifact in the store."""
    num_parameters: int
    report_json: str
    """Opaque here: written and read by frontends."""
    created_ns: int
    """Wall clock, since 1970."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    tenant: str
    name: str
    state: EntryState
    versions: tuple[RegisteredVersion, ...]
    """Oldest first; the last is current. Never empty."""
    labels: Mapping[str, str]
    revision: int
    """Grows with every change of the entry."""
    created_ns: int
    updated_ns: int

    @property
    def current(self) -> RegisteredVersion:
        return self.versions[-1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What a frontend commits."""

    tenant: str
    name: str
    digest: str
    num_bytes: int
    num_parameters: int
    report_json: str
    labels: Mapping[str, str]
    allow_update: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    entries: tuple[RegistryEntry, ...]
    next_page_token: str
    """Empty: this was the last."""


class Registry:
    """Use as an async context manager; every method is durable when it returns."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            listen(self._engine, "connect", _make_durable)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry")

    async def __aenter__(self) -> "Registry":
        await self._run(lambda connection: _metadata.create_all(connection))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    async def begin_term(self) -> int:
        """A number larger than any scheduler on this registry had before: what epochs are counted from."""
        return await self._run(_begin_term)

    async def commit(self, version: NewVersion) -> RegistryEntry:
        """Point a name at a version. Idempotent for the digest that is current.

        Raises:
            AlreadyExists: the name has another digest and ``allow_update`` is not set (ADAPTER_EXISTS).
            FailedPrecondition: the name is being unregistered (ADAPTER_DRAINING).
        """
        return await self._run(lambda connection: _commit(connection, version))

    async def get(self, tenant: str, name: str) -> RegistryEntry:
        """Raises NotFound (ADAPTER_NOT_FOUND)."""
        return await self._run(lambda connection: _get(connection, tenant, name))

    async def list_page(
        self, tenant: str, *, page_size: int, page_token: str, name_prefix: str, states: Sequence[EntryState]
    ) -> Page:
        """By name. Raises InvalidArgument for a bad page size or token."""
        return await self._run(
            lambda connection: _list_page(connection, tenant, page_size, page_token, name_prefix, list(states))
        )

    async def start_draining(self, tenant: str, name: str) -> RegistryEntry:
        """Idempotent. Raises NotFound (ADAPTER_NOT_FOUND)."""
        return await self._run(lambda connection: _start_draining(connection, tenant, name))

    async def delete(self, tenant: str, name: str) -> list[str]:
        """Forget a name that is draining; returns the digests that no name points at any more.

        A name that is gone, or registered anew since, stays as it is: the answer to an unregistration may come twice.
        """
        return await self._run(lambda connection: _delete(connection, tenant, name))

    async def load_all(self) -> list[RegistryEntry]:
        """Everything, for a scheduler that starts."""
        return await self._run(_load_all)

    async def _run(self, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)


def _make_durable(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=5000")


def _begin_term(connection: sa.Connection) -> int:
    last = connection.execute(sa.select(sa.func.max(_terms.c.term))).scalar() or 0
    connection.execute(sa.delete(_terms))
    connection.execute(sa.insert(_terms).values(term=last + 1))
    return int(last) + 1


def _where(table: sa.Table, tenant: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.tenant == tenant, table.c.name == name)


def _commit(connection: sa.Connection, new: NewVersion) -> RegistryEntry:
    now_ns = time.time_ns()
    existing = _find(connection, new.tenant, new.name)
    if existing is None:
        row = {"tenant": new.tenant, "name": new.name, "state": EntryState.READY.value, "revision": 1}
        row |= {"labels": json.dumps(dict(new.labels)), "created_ns": now_ns, "updated_ns": now_ns}
        connection.execute(sa.insert(_adapters).values(row))
    elif existing.state is EntryState.DRAINING:
        message = f"adapter {new.name!r} is being unregistered; wait until it is gone, or take another name"
        raise FailedPrecondition(message, reason="ADAPTER_DRAINING", metadata={"adapter": new.name})
    elif existing.current.digest == new.digest:
        return existing
    elif not new.allow_update:
        raise _name_taken(existing, new)
    else:
        changed = {"updated_ns": now_ns, "revision": existing.revision + 1, "labels": json.dumps(dict(new.labels))}
        connection.execute(sa.update(_adapters).where(_where(_adapters, new.tenant, new.name)).values(changed))
    number = existing.current.number + 1 if existing else 1
    connection.execute(sa.insert(_versions).values(_version_row(new, number, now_ns)))
    return _get(connection, new.tenant, new.name)


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
        "created_ns": now_ns,
    }


def _find(connection: sa.Connection, tenant: str, name: str) -> RegistryEntry | None:
    rows = connection.execute(sa.select(_adapters).where(_where(_adapters, tenant, name))).all()
    return _with_versions(connection, rows)[0] if rows else None


def _get(connection: sa.Connection, tenant: str, name: str) -> RegistryEntry:
    entry = _find(connection, tenant, name)
    if entry is None:
        raise NotFound(f"adapter {name!r} is not registered", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
    return entry


def _with_versions(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[RegistryEntry]:
    """Entries of these adapter rows, with two queries however many there are."""
    keys = [(row.tenant, row.name) for row in rows]
    wanted = sa.tuple_(_versions.c.tenant, _versions.c.name).in_(keys)
    query = sa.select(_versions).where(wanted).order_by(_versions.c.tenant, _versions.c.name, _versions.c.number)
    versions: dict[tuple[str, str], list[RegisteredVersion]] = {}
    for row in connection.execute(query) if keys else ():
        versions.setdefault((row.tenant, row.name), []).append(_version(row))
    return [_entry(row, versions[row.tenant, row.name]) for row in rows]


def _version(row: sa.Row[Any]) -> RegisteredVersion:
    return RegisteredVersion(
        number=row.number,
        digest=row.digest,
        num_bytes=row.num_bytes,
        num_parameters=row.num_parameters,
        report_json=row.report,
        created_ns=row.created_ns,
    )


def _entry(row: sa.Row[Any], versions: list[RegisteredVersion]) -> RegistryEntry:
    return RegistryEntry(
        tenant=row.tenant,
        name=row.name,
        state=EntryState(row.state),
        versions=tuple(versions),
        labels=json.loads(row.labels),
        revision=row.revision,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
    )


def _list_page(
    connection: sa.Connection,
    tenant: str,
    page_size: int,
    page_token: str,
    name_prefix: str,
    states: list[EntryState],
) -> Page:
    if page_size > MAX_PAGE_SIZE:
        raise InvalidArgument(f"page_size is {page_size}; the most is {MAX_PAGE_SIZE}", reason="FIELD_INVALID")
    size = page_size or DEFAULT_PAGE_SIZE
    query = sa.select(_adapters).where(_adapters.c.tenant == tenant, _adapters.c.name > _decode_token(page_token))
    if name_prefix:
        query = query.where(_adapters.c.name.startswith(name_prefix, autoescape=True))
    if states:
        query = query.where(_adapters.c.state.in_([state.value for state in states]))
    rows = connection.execute(query.order_by(_adapters.c.name).limit(size + 1)).all()
    entries = _with_versions(connection, rows[:size])
    token = _encode_token(entries[-1].name) if len(rows) > size else ""
    return Page(entries=tuple(entries), next_page_token=token)


def _encode_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _decode_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        message = "page_token is not one that this server gave out; start again without it"
        raise InvalidArgument(message, reason="PAGE_TOKEN_INVALID") from None


def _start_draining(connection: sa.Connection, tenant: str, name: str) -> RegistryEntry:
    entry = _get(connection, tenant, name)
    changed = {"state": EntryState.DRAINING.value, "revision": entry.revision + 1, "updated_ns": time.time_ns()}
    if entry.state is not EntryState.DRAINING:
        connection.execute(sa.update(_adapters).where(_where(_adapters, tenant, name)).values(changed))
    return _get(connection, tenant, name)


def _delete(connection: sa.Connection, tenant: str, name: str) -> list[str]:
    entry = _find(connection, tenant, name)
    if entry is None or entry.state is not EntryState.DRAINING:
        return []
    connection.execute(sa.delete(_versions).where(_where(_versions, tenant, name)))
    connection.execute(sa.delete(_adapters).where(_where(_adapters, tenant, name)))
    digests = {version.digest for version in entry.versions}
    kept = connection.execute(sa.select(_versions.c.digest).where(_versions.c.digest.in_(digests))).scalars()
    return sorted(digests - set(kept))


def _load_all(connection: sa.Connection) -> list[RegistryEntry]:
    entries: list[RegistryEntry] = []
    query = sa.select(_adapters).order_by(_adapters.c.tenant, _adapters.c.name)
    for rows in connection.execute(query).partitions(200):
        entries += _with_versions(connection, list(rows))
    return entries
