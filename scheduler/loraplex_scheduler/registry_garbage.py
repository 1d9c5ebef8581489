"""Who may delete bytes from the store, and which commits come too late.

A digest without a name is garbage. Whoever wants to delete its bytes claims it first; claims are numbered, and the
number of the last one is the store's sequence. A commit says at which sequence its frontend looked at the store: if its
digest was claimed later, or is claimed still, the bytes that the frontend saw may be gone, and it has to begin again.
"""

from collections.abc import Collection
from typing import Final

import sqlalchemy as sa

from loraplex_contract.errors import Aborted
from loraplex_scheduler.registry_entry import Claim
from loraplex_scheduler.registry_tables import COUNTERS, GARBAGE, VERSIONS

CLAIM_TTL_S: Final = 30.0
"""The holder deletes nothing later than this."""
_CLAIM_AGAIN_NS: Final = 120 * 1_000_000_000
"""Much later than the ttl: a holder that was held up between its look at the clock and the deletion is done by then."""
_KEPT_CLAIMS: Final = 10_000
_MAX_CLAIMED: Final = 256


def store_sequence(connection: sa.Connection) -> int:
    return _counter(connection, "claims")


def add(connection: sa.Connection, digests: Collection[str]) -> None:
    """These have lost their last name."""
    if digests:
        connection.execute(sa.delete(GARBAGE).where(GARBAGE.c.digest.in_(digests)))
        rows = [{"digest": digest, "claim": 0, "claimed_until_ns": 0, "is_deleted": False} for digest in digests]
        connection.execute(sa.insert(GARBAGE), rows)


def claim(connection: sa.Connection, digests: Collection[str], *, now_ns: int) -> Claim:
    """All of these that are free to be claimed; any, if none are named."""
    free = sa.select(GARBAGE.c.digest).where(~GARBAGE.c.is_deleted, GARBAGE.c.claimed_until_ns <= now_ns)
    if digests:
        free = free.where(GARBAGE.c.digest.in_(digests))
    found = tuple(connection.execute(free.order_by(GARBAGE.c.digest).limit(_MAX_CLAIMED)).scalars())
    if not found:
        return Claim(number=0, digests=())
    number = _counter(connection, "claims") + 1
    _set_counter(connection, "claims", number)
    claimed = {"claim": number, "claimed_until_ns": now_ns + _CLAIM_AGAIN_NS}
    connection.execute(sa.update(GARBAGE).where(GARBAGE.c.digest.in_(found)).values(claimed))
    return Claim(number=number, digests=found)


def confirm(connection: sa.Connection, number: int, digests: Collection[str]) -> None:
    """The bytes are gone; of a claim that somebody else has taken over, nothing is believed."""
    mine = sa.and_(GARBAGE.c.claim == number, GARBAGE.c.digest.in_(digests))
    connection.execute(sa.update(GARBAGE).where(mine).values(is_deleted=True))
    forgotten = _counter(connection, "claims") - _KEPT_CLAIMS
    if forgotten > _counter(connection, "forgotten_claims"):
        _set_counter(connection, "forgotten_claims", forgotten)
        connection.execute(sa.delete(GARBAGE).where(GARBAGE.c.is_deleted, GARBAGE.c.claim <= forgotten))


def check_commit(connection: sa.Connection, digest: str, sequence: int) -> None:
    """Raises Aborted (STORE_CHANGED) if the committer's look at the store is out of date."""
    row = connection.execute(sa.select(GARBAGE).where(GARBAGE.c.digest == digest)).first()
    is_claimed = row is not None and row.claim > 0 and (not row.is_deleted or row.claim > sequence)
    if is_claimed or sequence < _counter(connection, "forgotten_claims"):
        message = "the version's bytes are being deleted from the store, or were a moment ago: begin again"
        raise Aborted(message, reason="STORE_CHANGED", metadata={"digest": digest}, retry_delay_s=0.05)


def rescue(connection: sa.Connection, digest: str) -> None:
    """The digest has a name again."""
    connection.execute(sa.delete(GARBAGE).where(GARBAGE.c.digest == digest, GARBAGE.c.claim == 0))


def unreferenced(connection: sa.Connection, digests: Collection[str]) -> list[str]:
    kept = connection.execute(sa.select(VERSIONS.c.digest).where(VERSIONS.c.digest.in_(digests))).scalars()
    return sorted(set(digests) - set(kept))


def _counter(connection: sa.Connection, name: str) -> int:
    value = connection.execute(sa.select(COUNTERS.c.value).where(COUNTERS.c.name == name)).scalar()
    return int(value or 0)


def _set_counter(connection: sa.Connection, name: str, value: int) -> None:
    connection.execute(sa.delete(COUNTERS).where(COUNTERS.c.name == name))
    connection.execute(sa.insert(COUNTERS).values(name=name, value=value))
