"""Which of the kernels' instruction sets a processor has."""

import enum
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


class InstructionSet(enum.IntEnum):
    """What the source is compiled for; a higher one includes the lower ones."""

    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        """Flags of g++ and clang++."""
        flags = ["-mavx2", "-mfma"]
        if self >= InstructionSet.AVX512:
            flags += ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
        if self >= InstructionSet.AVX512_BF16:
            flags += ["-mavx512bf16"]
        return tuple(flags)


_NEEDS = {
    InstructionSet.AVX512_BF16: {"avx512_bf16"},
    InstructionSet.AVX512: {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    InstructionSet.AVX2: {"avx2", "fma"},
}


def detect(cpuinfo: Path = _CPUINFO) -> InstructionSet | None:
    """The best set of this machine, or None where the kernels cannot run: no Linux, no x86-64, or no AVX2."""
    if platform.machine() != "x86_64":
        return None
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return best_of(set(next(lines, "").partition(":")[2].split()))


def best_of(flags: set[str]) -> InstructionSet | None:
    """The best set among the processor's flags, as /proc/cpuinfo names them."""
    best = None
    for level in InstructionSet:
        if not _NEEDS[level] <= flags:
            break
        best = level
    return best
