"""Which requests have been carried out, so that a repetition changes nothing."""

from typing import Final

import sqlalchemy as sa

from loraplex_contract.errors import AlreadyExists
from loraplex_scheduler.registry_entry import RequestIdentity
from loraplex_scheduler.registry_tables import REQUESTS

_KEPT_NS: Final = 24 * 3600 * 1_000_000_000
_MAX_FORGOTTEN: Final = 100
"""Per new one, so that no call pays for a day's."""


def is_done(connection: sa.Connection, tenant: str, identity: RequestIdentity | None, *, now_ns: int) -> bool:
    """Whether this very request has succeeded before.

    Raises:
        AlreadyExists: another request has this id (REQUEST_ID_REUSED).
    """
    if identity is None:
        return False
    row = connection.execute(sa.select(REQUESTS).where(_is(tenant, identity))).first()
    if row is None or row.done_ns < now_ns - _KEPT_NS:
        return False
    if row.fingerprint != identity.fingerprint:
        message = f"request_id: {identity.request_id!r} was used for another request; take a new one"
        raise AlreadyExists(message, reason="REQUEST_ID_REUSED")
    return True


def remember(
    connection: sa.Connection, tenant: str, name: str, identity: RequestIdentity | None, *, now_ns: int
) -> None:
    if identity is None:
        return
    old = sa.select(REQUESTS.c.done_ns).where(REQUESTS.c.done_ns < now_ns - _KEPT_NS)
    oldest = connection.execute(old.order_by(REQUESTS.c.done_ns).limit(_MAX_FORGOTTEN)).scalars().all()
    if oldest:
        connection.execute(sa.delete(REQUESTS).where(REQUESTS.c.done_ns <= oldest[-1]))
    connection.execute(sa.delete(REQUESTS).where(_is(tenant, identity)))
    row = {"tenant": tenant, "request_id": identity.request_id, "fingerprint": identity.fingerprint}
    connection.execute(sa.insert(REQUESTS).values(**row, name=name, done_ns=now_ns))


def _is(tenant: str, identity: RequestIdentity) -> sa.ColumnElement[bool]:
    return sa.and_(REQUESTS.c.tenant == tenant, REQUESTS.c.request_id == identity.request_id)
