"""The one event loop that all synchronous clients of a process share.

gRPC's asyncio layer has one completion queue a process: with several loops they wake each other up for nothing. So the
loop is counted and shared: it starts with the first client and ends with the last.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class BackgroundLoop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loraplex-client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _T]) -> "concurrent.futures.Future[_T]":
        """Starts the work on the loop, from any thread but its own."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Waits for the result. If the wait is interrupted (Ctrl-C) the work is cancelled."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the loop and joins the thread. Nothing may run on it any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


class _Shared:
    """The counted loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: BackgroundLoop | None = None
        self._num_users = 0

    def acquire(self) -> BackgroundLoop:
        with self._lock:
            self._loop = self._loop or BackgroundLoop()
            self._num_users += 1
            return self._loop

    def release(self) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users == 0 and self._loop is not None:
                self._loop.stop()
                self._loop = None


SHARED = _Shared()
