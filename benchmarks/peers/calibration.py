"""How fast the machine is right now: a bf16 matmul and a read. A run between two that differ is void."""

import dataclasses
import time

import torch

_SIZE = 1024
_READ_BYTES = 256 << 20
MAX_DRIFT = 0.15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    matmul_gflops: float
    read_gb_per_s: float

    def drift(self, later: "Calibration") -> float:
        """The larger of the two relative changes."""
        matmul = later.matmul_gflops / self.matmul_gflops
        read = later.read_gb_per_s / self.read_gb_per_s
        return max(abs(matmul - 1), abs(read - 1))


def calibrate(num_threads: int, *, num_tries: int = 7) -> Calibration:
    """The best of a few tries: what the machine can do, not what a neighbour left of it."""
    torch.set_num_threads(num_threads)
    left, right = torch.randn(2, _SIZE, _SIZE).to(torch.bfloat16).unbind()
    block = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    matmul_s = min(_time(lambda: left @ right) for _ in range(num_tries))
    read_s = min(_time(block.sum) for _ in range(num_tries))
    return Calibration(matmul_gflops=2e-9 * _SIZE**3 / matmul_s, read_gb_per_s=_READ_BYTES * 1e-9 / read_s)


def _time(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
