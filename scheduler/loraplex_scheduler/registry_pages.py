"""Reading entries: one, a page of them, or all. What is read grows with what is asked for, not with what is there."""

import base64
import binascii
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from loraplex_contract.errors import InvalidArgument, NotFound
from loraplex_scheduler.registry_entry import EntryState, Page, RegisteredVersion, RegistryEntry
from loraplex_scheduler.registry_tables import ADAPTERS, LABELS, VERSIONS, where

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 50
_AFTER_NAME_CHARS: Final = "~"
"""Sorts behind every character of a name."""
_LIGHT: Final = tuple(column for column in VERSIONS.columns if column.name != "report")


def find(connection: sa.Connection, tenant: str, name: str) -> RegistryEntry | None:
    rows = connection.execute(sa.select(ADAPTERS).where(where(ADAPTERS, tenant, name))).all()
    return _with_versions(connection, rows, with_reports=True)[0] if rows else None


def get(connection: sa.Connection, tenant: str, name: str) -> RegistryEntry:
    """Raises NotFound (ADAPTER_NOT_FOUND)."""
    entry = find(connection, tenant, name)
    if entry is None:
        raise NotFound(f"adapter {name!r} is not registered", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
    return entry


def page_query(
    tenant: str, *, after: str, name_prefix: str, states: Collection[EntryState], labels: Mapping[str, str]
) -> sa.Select[Any]:
    """The rows of one page, without its limit."""
    query = sa.select(ADAPTERS).where(ADAPTERS.c.tenant == tenant, ADAPTERS.c.name > after)
    if name_prefix:
        bounds = ADAPTERS.c.name >= name_prefix, ADAPTERS.c.name < name_prefix + _AFTER_NAME_CHARS
        query = query.where(*bounds)
    if states:
        query = query.where(ADAPTERS.c.state.in_([state.value for state in states]))
    for number, (key, value) in enumerate(sorted(labels.items())):
        label = LABELS.alias(f"label_{number}")
        query = query.join(label, sa.and_(label.c.tenant == ADAPTERS.c.tenant, label.c.name == ADAPTERS.c.name))
        query = query.where(label.c.tenant == tenant, label.c.key == key, label.c.value == value)
    return query.order_by(ADAPTERS.c.name)


def list_page(
    connection: sa.Connection,
    tenant: str,
    *,
    page_size: int,
    after: str,
    name_prefix: str,
    states: Collection[EntryState],
    labels: Mapping[str, str],
) -> Page:
    """By name, without reports."""
    query = page_query(tenant, after=after, name_prefix=name_prefix, states=states, labels=labels)
    rows = connection.execute(query.limit(page_size + 1)).all()
    entries = _with_versions(connection, rows[:page_size], with_reports=False)
    token = encode_token(entries[-1].name) if len(rows) > page_size else ""
    return Page(entries=tuple(entries), next_page_token=token)


def load_all(connection: sa.Connection, tenant: str | None = None) -> list[RegistryEntry]:
    """Without reports; of one tenant, or of all."""
    entries: list[RegistryEntry] = []
    query = sa.select(ADAPTERS).order_by(ADAPTERS.c.tenant, ADAPTERS.c.name)
    if tenant is not None:
        query = query.where(ADAPTERS.c.tenant == tenant)
    for rows in _chunks(connection.execute(query).all(), 200):
        entries += _with_versions(connection, rows, with_reports=False)
    return entries


def checked_page_size(page_size: int) -> int:
    """Raises InvalidArgument above ``MAX_PAGE_SIZE``; 0 is the default."""
    if page_size > MAX_PAGE_SIZE:
        raise InvalidArgument(f"page_size is {page_size}; the most is {MAX_PAGE_SIZE}", reason="FIELD_INVALID")
    return page_size or DEFAULT_PAGE_SIZE


def encode_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def decode_token(token: str) -> str:
    """Raises InvalidArgument (PAGE_TOKEN_INVALID)."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        message = "page_token is not one that this server gave out; start again without it"
        raise InvalidArgument(message, reason="PAGE_TOKEN_INVALID") from None


def _chunks(rows: Sequence[sa.Row[Any]], size: int) -> Iterator[Sequence[sa.Row[Any]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _with_versions(
    connection: sa.Connection, rows: Sequence[sa.Row[Any]], *, with_reports: bool
) -> list[RegistryEntry]:
    """Entries of these adapter rows, with one more query however many there are."""
    keys = [(row.tenant, row.name) for row in rows]
    wanted = sa.tuple_(VERSIONS.c.tenant, VERSIONS.c.name).in_(keys)
    columns = tuple(VERSIONS.columns) if with_reports else _LIGHT
    query = sa.select(*columns).where(wanted).order_by(VERSIONS.c.tenant, VERSIONS.c.name, VERSIONS.c.number)
    versions: dict[tuple[str, str], list[RegisteredVersion]] = {}
    for row in connection.execute(query) if keys else ():
        versions.setdefault((row.tenant, row.name), []).append(_version(row, with_reports))
    return [_entry(row, versions[row.tenant, row.name]) for row in rows]


def _version(row: sa.Row[Any], with_report: bool) -> RegisteredVersion:
    return RegisteredVersion(
        number=row.number,
        digest=row.digest,
        num_bytes=row.num_bytes,
        num_parameters=row.num_parameters,
        report_json=row.report if with_report else "",
        created_ns=row.created_ns,
        summary=row.summary or b"",
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
        description=row.description,
        expires_ns=row.expires_ns,
    )
