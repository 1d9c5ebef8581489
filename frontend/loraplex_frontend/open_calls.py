"""The calls and sessions that generate now, so that a shutdown can tell them, wait for them, and end them."""

import asyncio
from typing import Protocol

from loraplex_contract.errors import LoraplexError


class OpenCall(Protocol):
    """A call that can be asked to end."""

    def go_away(self, time_left_s: float) -> None:
        """No new requests; running ones may finish within the time."""
        ...

    def fail(self, error: LoraplexError) -> None:
        """Ends every running request, and then the call, now."""
        ...


class OpenCalls:
    """The set, and a way to wait until it is empty."""

    def __init__(self) -> None:
        self._calls: set[OpenCall] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def add(self, call: OpenCall) -> None:
        self._calls.add(call)
        self._is_empty.clear()

    def discard(self, call: OpenCall) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._is_empty.set()

    def __len__(self) -> int:
        return len(self._calls)

    def go_away(self, time_left_s: float) -> None:
        for call in list(self._calls):
            call.go_away(time_left_s)

    def fail(self, error: LoraplexError) -> None:
        for call in list(self._calls):
            call.fail(error)

    async def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether it was empty in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True
