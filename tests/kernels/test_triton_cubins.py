"""Every variant that the launchers select compiles for the chips that are served, within stated bounds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu.cubin_table import cubin_table

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 90)
TIMEOUT_S = 420
MAX_SPILL_BYTES = 64
"""Of a thread: a few registers around a loop, not within it."""
SHARED_PER_PROGRAM_BYTES = {80: 163 << 10, 90: 227 << 10}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By chip. Each has a process of its own, since a process has one driver of Triton; both at once."""
    folder = tmp_path_factory.mktemp("cubins")
    running = {capability: start(capability, folder) for capability in CAPABILITIES}
    try:
        for capability, process in running.items():
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, f"sm_{capability}: {output[-3000:]}"
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {capability: json.loads((folder / f"{capability}.json").read_text()) for capability in CAPABILITIES}


def start(capability: int, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """With an empty cache: what was compiled at another time proves nothing."""
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(folder / f"cache-{capability}"),
        "TRITON_INTERPRET": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    }
    command = [sys.executable, "-m", "benchmarks.gpu.cubins", "--capability", str(capability)]
    command += options or ("--json", str(folder / f"{capability}.json"))
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_fits_the_chip_and_hardly_spills(cubins, capability):
    rows = cubins[capability]
    for row in rows:
        name = f"{row['kernel']} in {row['case']}, {row['dtype']}"
        assert row["spill_bytes"] <= MAX_SPILL_BYTES, f"{name}: {row['spill_bytes']} bytes of a thread are spilled"
        assert row["shared_bytes"] <= SHARED_PER_PROGRAM_BYTES[capability], f"{name}: {row['shared_bytes']} bytes"
        assert row["registers"] <= 255, name
        assert row["resident_programs"] >= 1, f"{name} fits no multiprocessor"
    kernels = {row["kernel"] for row in rows}
    assert kernels == expected_kernels(), "a kernel without a case, or a case without its kernel"
    assert {row["dtype"] for row in rows} == {"float16", "bfloat16", "float32"}


def expected_kernels() -> set[str]:
    """What ``kernels/`` defines for launching: the names that a grid is given for."""
    names = set()
    for path in (ROOT / "kernels" / "loraplex_kernels").glob("*/launcher.py"):
        text = path.read_text()
        names |= {part.split("[")[0].strip().split(".")[-1] for part in text.split("\n") if "_kernel[" in part}
    return {name.split("=")[-1].strip() for name in names}


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_was_compiled(cubins):
    page = (ROOT / "docs" / "kernels.md").read_text()
    for capability in CAPABILITIES:
        assert cubin_table(cubins[capability]) in page, f"sm_{capability}: python -m benchmarks.gpu.cubin_table"


@pytest.mark.slow
def test_a_decoder_layer_takes_no_more_launches_than_stated(tmp_path):
    output, _ = start(90, tmp_path, "--launches", "one layer").communicate(timeout=TIMEOUT_S)
    counts = json.loads(output)
    assert counts["lora_kernel"] <= 6, counts
    line = ", ".join(f"{number} `{kernel}`" for kernel, number in sorted(counts.items()))
    assert f"{sum(counts.values())} launches: {line}" in (ROOT / "docs" / "kernels.md").read_text(), line
