"""A TaskGroup that lives as long as its owner and does not wrap the owner's errors into groups."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class TaskScope:
    """Opened and closed on the same task."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._group.__aenter__()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, timeout_s: float) -> None:
        """Until all tasks are done, or the time is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """Cancels what still runs and waits for it."""
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)
