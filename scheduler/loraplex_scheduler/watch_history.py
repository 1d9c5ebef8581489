"""The last changes of the registry, and those who wait for the next one."""

import asyncio
from bisect import bisect_right
from collections import deque
from typing import Final

from loraplex_contract.errors import OutOfRange
from loraplex_scheduler.registrations import Registration
from loraplex_scheduler.registry_entry import RegistryEntry

MAX_CHANGES: Final = 4096
Change = RegistryEntry | Registration


class WatchHistory:
    """A watch is a revision in here and nothing else: slow readers cost no memory, they fall off the end.

    Args:
        revision: changes up to here are not known.
    """

    def __init__(self, revision: int, *, max_changes: int = MAX_CHANGES) -> None:
        self._first_known = revision
        self.revision = revision
        """Of the last change."""
        self._max_changes = max_changes
        self._changes: deque[Change] = deque()
        self._news = asyncio.Event()

    def add(self, change: Change) -> None:
        """In the order of revisions."""
        assert change.revision > self.revision, f"revision {change.revision} after {self.revision}"
        self._changes.append(change.without_reports() if isinstance(change, RegistryEntry) else change)
        self.revision = change.revision
        while len(self._changes) > self._max_changes:
            self._first_known = self._changes.popleft().revision
        news, self._news = self._news, asyncio.Event()
        news.set()

    def after(self, revision: int, limit: int) -> list[Change]:
        """The changes after it, oldest first.

        Raises:
            OutOfRange: some of them are no longer kept, or it is ahead of the registry (WATCH_COMPACTED).
        """
        if not self._first_known <= revision <= self.revision:
            message = f"from_revision: {revision} is not within {self._first_known} to {self.revision}: begin with 0"
            metadata = {"oldest": f"{self._first_known}", "newest": f"{self.revision}"}
            raise OutOfRange(message, reason="WATCH_COMPACTED", metadata=metadata)
        start = bisect_right(self._changes, revision, key=lambda change: change.revision)
        return [self._changes[number] for number in range(start, min(start + limit, len(self._changes)))]

    async def wait(self, revision: int, timeout_s: float) -> None:
        """Until there is something after ``revision``, or the time is over."""
        if self.revision > revision:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return
