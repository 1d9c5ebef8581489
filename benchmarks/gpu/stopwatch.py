"""Seconds of something on the device; on a host without one, by the clock, to prove the plumbing."""

import statistics
import time
from collections.abc import Callable

import torch

_FLUSH_BYTES = 256 << 20
"""More than any second-level cache: operators are timed with their operands in memory."""


class Stopwatch:
    def __init__(self, device: torch.device, *, num_repeats: int = 20) -> None:
        self._device = device
        self._num_repeats = num_repeats
        self._is_cuda = device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES if self._is_cuda else 1, dtype=torch.uint8, device=device)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """``work`` as one CUDA graph, after three runs that compile what it launches."""
        for _ in range(3 if self._is_cuda else 0):
            work()
        if not self._is_cuda:
            return work
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def seconds(self, work: Callable[[], None]) -> float:
        """Median, each with a flushed cache."""
        replay = self.captured(work)
        return statistics.median(self._once(replay) for _ in range(self._num_repeats if self._is_cuda else 1))

    def _once(self, replay: Callable[[], None]) -> float:
        self._flush.zero_()
        if not self._is_cuda:
            begin = time.perf_counter()
            replay()
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        replay()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3
