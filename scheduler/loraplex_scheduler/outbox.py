"""Frames that wait for one peer: bounded, so that a peer that does not read costs only itself."""

import asyncio
from typing import Generic, TypeVar

from loraplex_contract.errors import ResourceExhausted

Frame = TypeVar("Frame")


class Outbox(Generic[Frame]):
    """Filled by the dispatcher without waiting, emptied by the stream's one writer."""

    def __init__(self, max_frames: int) -> None:
        self._frames: asyncio.Queue[Frame] = asyncio.Queue(maxsize=max_frames)
        self._is_overfull = False

    def put(self, frame: Frame) -> None:
        """Never waits. A frame that does not fit is lost, and with it the peer: see ``check``."""
        try:
            self._frames.put_nowait(frame)
        except asyncio.QueueFull:
            self._is_overfull = True

    async def get(self) -> Frame:
        return await self._frames.get()

    def check(self) -> None:
        """To be called now and then, by a task that does not write.

        Raises:
            ResourceExhausted: a frame has been lost (SLOW_PEER).
        """
        if self._is_overfull:
            message = f"the peer left {self._frames.maxsize} frames unread"
            raise ResourceExhausted(message, reason="SLOW_PEER", retry_delay_s=1.0)
