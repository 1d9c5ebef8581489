"""Compile every kernel variant that the launchers select to machine code, on a computer without a GPU, and weigh it.

The launchers themselves run, over tensors in host memory and a driver that only names a chip: so the variants are those
of real launches, with all that Triton specialises on. Nothing is launched.

    python -m benchmarks.gpu.cubins --capability 90 --json cubins.json
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import cases
from loraplex_kernels import chip

REGISTERS_PER_SM = 65536
SHARED_PER_SM_BYTES = {80: 164 << 10, 90: 228 << 10}
SHARED_PER_PROGRAM_BYTES = {80: 163 << 10, 90: 227 << 10}
"""What one program may take: the rest is the system's."""
_SMS = {80: 108, 90: 132}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cubin:
    """One compiled variant."""

    case: str
    kernel: str
    dtype: str
    capability: int
    num_warps: int
    num_stages: int
    registers: int
    """Of a thread."""
    spill_bytes: int
    """Of a thread, stack and local memory."""
    shared_bytes: int
    """Of a program."""
    resident_programs: int
    """That one multiprocessor has registers and shared memory for."""


class _NamedChip:
    """A driver of Triton that has a target and nothing else."""

    def __init__(self, capability: int) -> None:
        self._target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiled_only(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Within it, launches compile for ``capability`` and do not run; yields (kernel name, compiled) of each.

    The driver stays set: such a process does nothing else.
    """
    driver = importlib.import_module("triton.runtime").driver
    jit_function = importlib.import_module("triton.runtime.jit").JITFunction
    launches: list[tuple[str, Any]] = []
    run, host = jit_function.run, chip.INTERPRETER

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append((self.fn.__name__, compiled))
        return compiled

    driver.set_active(_NamedChip(capability))
    chip.INTERPRETER = chip.Chip(capability=capability, num_sms=_SMS[capability])
    jit_function.run = compile_only
    try:
        yield launches
    finally:
        jit_function.run = run
        chip.INTERPRETER = host


def compile_all(capability: int, only: str = "") -> list[Cubin]:
    """Every case whose name contains ``only``, each different variant once."""
    cubins: dict[str, Cubin] = {}
    for case in cases.every():
        if only in case.name:
            with compiled_only(capability) as launches:
                case.launch()
            assert launches, f"{case.name} launched nothing"
            for kernel, compiled in launches:
                if compiled.hash not in cubins:
                    cubins[compiled.hash] = _weigh(case, kernel, compiled, capability)
    return list(cubins.values())


def launch_counts(case_name: str, capability: int = 90) -> dict[str, int]:
    """Launches of one case, by kernel; its first dtype stands for all."""
    case = next(case for case in cases.every() if case.name == case_name)
    with compiled_only(capability) as launches:
        case.launch()
    return dict(collections.Counter(kernel for kernel, _ in launches))


def _weigh(case: cases.Case, kernel: str, compiled: Any, capability: int) -> Cubin:
    usage = _usage(compiled.asm["cubin"])
    metadata = compiled.metadata
    registers, shared = usage["REG"], metadata.shared
    by_registers = REGISTERS_PER_SM // (-(-registers // 8) * 8 * 32 * metadata.num_warps)
    by_shared = SHARED_PER_SM_BYTES[capability] // (shared + 1024)
    return Cubin(
        case=case.name,
        kernel=kernel,
        dtype=str(case.dtype).removeprefix("torch."),
        capability=capability,
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        registers=registers,
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=shared,
        resident_programs=min(by_registers, by_shared, 64 // metadata.num_warps, 32),
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL and SHARED, as the toolkit reads them from the machine code."""
    cuobjdump = importlib.import_module("triton").knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([cuobjdump, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, choices=sorted(_SMS), required=True)
    parser.add_argument("--launches", metavar="CASE", help="count the launches of one case instead, by kernel")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--json", type=Path, help="write the list there; standard output if left out")
    options = parser.parse_args()
    if options.launches:
        print(json.dumps(launch_counts(options.launches, options.capability)))
        return
    text = json.dumps([dataclasses.asdict(cubin) for cubin in compile_all(options.capability, options.only)], indent=1)
    if options.json is None:
        print(text)
    else:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
