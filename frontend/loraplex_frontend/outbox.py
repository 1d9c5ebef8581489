"""What waits to be written to one stream: frames in order, and the sequences that have news.

It gathers (StreamOptions), meters (token credit) and merges: while a reader is slow, news pile up in their sequences
and leave as one delta each. One writer takes; anybody on the loop may put.
"""

import asyncio
import dataclasses
from collections import deque
from typing import Any, Final

from loraplex_frontend.delta import Delta
from loraplex_frontend.request import Coalescing
from loraplex_frontend.sequence import Sequence

MAX_CREDIT: Final = 1 << 62
MAX_QUEUED_FRAMES: Final = 1_024


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """What may be written now."""

    frames: list[Any]
    deltas: list[Delta]
    wake_at: float | None
    """When news that are held back become due, by the loop's clock."""


class Outbox:
    """The writer's end and the putters' end of one stream."""

    def __init__(self, *, coalescing: Coalescing, credit: int | None, max_bytes: int) -> None:
        self._coalescing = coalescing
        self._credit = credit
        self._max_bytes = max_bytes
        self._frames: deque[Any] = deque()
        self._num_bytes = 0
        self._news: dict[Sequence, None] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._is_closed = False

    # --- putting ---

    def put(self, frame: Any, num_bytes: int = 0) -> None:
        """A frame that goes before all deltas that come later. ``num_bytes`` where it is big."""
        self._frames.append((frame, num_bytes))
        self._num_bytes += num_bytes
        self._wake.set()

    def notify(self, sequence: Sequence, num_bytes: int = 0) -> None:
        """This sequence has news that take ``num_bytes`` more memory (fewer, if negative)."""
        self._news[sequence] = None
        self._num_bytes += num_bytes
        self._wake.set()

    def add_credit(self, num_tokens: int) -> None:
        if self._credit is not None:
            self._credit = min(MAX_CREDIT, self._credit + num_tokens)
            self._wake.set()

    def close(self) -> None:
        """Nothing more will be put: the writer ends when all is written."""
        self._is_closed = True
        self._wake.set()

    async def wait_for_room(self) -> None:
        """Until few enough frames wait that another may be caused."""
        if len(self._frames) > MAX_QUEUED_FRAMES:
            self._room.clear()
            await self._room.wait()

    @property
    def is_over_cap(self) -> bool:
        """Whether the reader is so slow that more of its output than the cap waits here."""
        return self._num_bytes > self._max_bytes

    # --- taking ---

    @property
    def is_done(self) -> bool:
        return self._is_closed and not self._frames and not self._news

    def take(self, now: float) -> Taken:
        """All frames, and of each sequence what is due and covered by credit, oldest news first."""
        self._wake.clear()
        frames = [frame for frame, _ in self._frames]
        self._num_bytes -= sum(num_bytes for _, num_bytes in self._frames)
        self._frames.clear()
        self._room.set()
        deltas: list[Delta] = []
        wake_at: float | None = None
        for sequence in list(self._news):
            due_at = self._due_at(sequence)
            if due_at > now:
                wake_at = due_at if wake_at is None else min(wake_at, due_at)
            elif self._credit is None or self._credit > 0 or not sequence.num_pending:
                deltas.append(self._take_from(sequence))
        return Taken(frames, deltas, wake_at)

    async def wait(self, until: float | None) -> None:
        """Until something is put or ``until``; spurious returns are fine."""
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            return

    def _due_at(self, sequence: Sequence) -> float:
        if sequence.num_pending >= self._coalescing.min_tokens or sequence.is_ended or self._is_closed:
            return 0.0
        return sequence.pending_since + self._coalescing.max_delay_s

    def _take_from(self, sequence: Sequence) -> Delta:
        del self._news[sequence]
        num_bytes = sequence.num_bytes
        delta = sequence.take(self._credit)
        self._num_bytes -= num_bytes - sequence.num_bytes
        if self._credit is not None:
            self._credit -= delta.num_tokens
        if sequence.has_news:
            # To the back: the others come first when there is credit again.
            self._news[sequence] = None
        return delta
