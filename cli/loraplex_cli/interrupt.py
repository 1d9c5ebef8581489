"""Ctrl-C, remembered."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """While entered, SIGINT raises KeyboardInterrupt as ever and is also remembered in ``is_set``.

    Python drops an exception that a signal handler raises inside a finalizer or a callback of the collector ("Exception
    ignored in"): whoever reads a fast stream must look at the flag too. For the main thread only.
    """

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallows the KeyboardInterrupt."""
        signal.signal(signal.SIGINT, self._before)
        return kind is KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        raise KeyboardInterrupt
