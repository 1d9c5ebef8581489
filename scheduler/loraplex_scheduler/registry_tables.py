"""The tables of the registry, and how an older database comes to have them."""

import json
from typing import Any

import sqlalchemy as sa

METADATA = sa.MetaData()
# Names are compared by their bytes everywhere, so that pages and prefixes mean the same in every database.
_NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")

ADAPTERS = sa.Table(
    "adapters",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("expires_ns", sa.BigInteger, nullable=True),
    sa.Index("adapters_by_expiry", "expires_ns"),
)
VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_parameters", sa.BigInteger, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("summary", sa.LargeBinary, nullable=True),
)
LABELS = sa.Table(
    "labels",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(128), primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Index("labels_by_name", "tenant", "name"),
)
GARBAGE = sa.Table(
    "garbage",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("claim", sa.BigInteger, nullable=False),
    sa.Column("claimed_until_ns", sa.BigInteger, nullable=False),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
)
"""Digests that lost their last name. A row outlives the bytes for a while, for commits that began before."""
REQUESTS = sa.Table(
    "requests",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("done_ns", sa.BigInteger, nullable=False, index=True),
)
TERMS = sa.Table("terms", METADATA, sa.Column("term", sa.BigInteger, primary_key=True))
COUNTERS = sa.Table(
    "counters",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


def prepare(connection: sa.Connection) -> None:
    """Make what is missing; idempotent."""
    known = sa.inspect(connection)
    had_labels = known.has_table("labels")
    before = {
        table.name: {column["name"] for column in known.get_columns(table.name)}
        for table in METADATA.sorted_tables
        if known.has_table(table.name)
    }
    METADATA.create_all(connection)
    for table in METADATA.sorted_tables:
        for column in table.columns if table.name in before else ():
            if column.name not in before[table.name]:
                _add_column(connection, column)
    for index in ADAPTERS.indexes:
        index.create(connection, checkfirst=True)
    if not had_labels:
        _fill_labels(connection)


def _add_column(connection: sa.Connection, column: sa.Column[Any]) -> None:
    kind = column.type.compile(connection.dialect)
    default = "" if column.nullable else " NOT NULL DEFAULT ''"
    connection.execute(sa.text(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}{default}"))


def _fill_labels(connection: sa.Connection) -> None:
    for row in connection.execute(sa.select(ADAPTERS.c.tenant, ADAPTERS.c.name, ADAPTERS.c.labels)).all():
        insert_labels(connection, row.tenant, row.name, json.loads(row.labels))


def insert_labels(connection: sa.Connection, tenant: str, name: str, labels: dict[str, str]) -> None:
    rows = [{"tenant": tenant, "name": name, "key": key, "value": value} for key, value in labels.items()]
    if rows:
        connection.execute(sa.insert(LABELS), rows)


def where(table: sa.Table, tenant: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.tenant == tenant, table.c.name == name)
