"""Whose turn it is. The batcher asks a policy for every choice that is a matter of right, and knows none itself."""

import dataclasses
import enum
from typing import Protocol

from loraplex_scheduler.core.account import Account
from loraplex_scheduler.core.lazy_heap import Key
from loraplex_scheduler.core.request import Sequence


class Skips(enum.Enum):
    """Past what a batch may be filled with those behind."""

    NOTHING = "NOTHING"
    """Head of line blocks, an adapter on its way included."""
    ADAPTERS = "ADAPTERS"
    """Past one whose adapter is not there or does not fit; want of pages blocks."""
    ALL = "ALL"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a policy allows."""

    skips: Skips
    lookahead: int
    """Sequences that may be passed over in one look at a worker."""
    max_overtake_ns: int | None
    """How long one may be overtaken before room is kept for it. None: for ever."""
    preempts: bool = False
    """Whether a better priority class takes the place of a running worse one."""
    shares: bool = False
    """Whether tenants above their share of the slots leave some to others, and give way to those below theirs."""
    refuses_early: bool = False
    """Whether a request that is predicted to miss its first-token deadline is refused at once."""
    aborts_late: bool = False
    """Whether one that waits and can no longer meet it is ended before it costs anything."""


class Policy(Protocol):
    """Keys of right: the smaller goes first. A policy keeps no pages and sends no commands.

    A sequence's key is fixed while it waits. A lane's and a shelf's may grow by themselves (accounts do); where they
    fall, the waiting room says so.
    """

    @property
    def rules(self) -> Rules: ...

    def priority(self, sequence: Sequence) -> int:
        """The class it is served in."""
        ...

    def sequence_key(self, sequence: Sequence) -> Key:
        """Within its lane."""
        ...

    def lane_key(self, head: Key, account: Account, *, is_in_batch: bool) -> Key:
        """Within its tenant's shelf, by its first sequence's key."""
        ...

    def shelf_key(self, priority: int, account: Account, best: Key) -> Key:
        """Of a tenant's shelf, by its best lane's key; comparable over all workers."""
        ...
