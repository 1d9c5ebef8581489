"""What the kernels reach on this device, beside limits that are measured in the same run. Prints a table, writes JSON.

    python -m benchmarks.gpu.measure --out benchmarks/results
    python -m benchmarks.gpu.measure --dry-run          # tiny shapes through the interpreter: proves the plumbing alone

Names of the metrics are those of the project's performance goals. What is timed is a decode step from the project's
kernels and torch's products in one CUDA graph, without the engine around it.
"""

import argparse
import dataclasses
import gc
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tests.kernels.triton_suite.interpreter import accept_loaded_loop_bounds

from benchmarks.gpu.decode_step import LLAMA_3_8B, SMOLLM2_135M, TINY, DecodeStep, Shape, Weights
from benchmarks.gpu.stopwatch import Stopwatch
from loraplex_kernels.chip import chip_of
from loraplex_kernels.paged_attention import configs as attention_configs
from loraplex_kernels.paged_attention.launcher import DecodeScratch, PrefillTiles, decode_attention, prefill_attention


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    metric: str
    what: str
    goal: str
    measured: float
    unit: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    copy_bytes_per_s: float
    matmul_flop_per_s: float


class Bench:
    def __init__(self, device: torch.device, *, is_dry: bool) -> None:
        self.device, self.is_dry = device, is_dry
        self.watch = Stopwatch(device)
        self.dtype = torch.float32 if is_dry else torch.bfloat16
        self.limits = self._limits()

    def _limits(self) -> Limits:
        size, side = (1 << 12, 64) if self.is_dry else (1 << 30, 8192)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy_s = self.watch.seconds(lambda: _copy(source, target))
        a = torch.ones(side, side, dtype=self.dtype, device=self.device)
        out = torch.empty_like(a)
        matmul_s = self.watch.seconds(lambda: _multiply(a, out))
        return Limits(copy_bytes_per_s=2 * size / copy_s, matmul_flop_per_s=2 * side**3 / matmul_s)

    def rows(self) -> Iterator[Row]:
        yield Row(
            metric="copy",
            what="device memory, read and write",
            goal="-",
            measured=self.limits.copy_bytes_per_s / 1e9,
            unit="GB/s",
        )
        yield Row(
            metric="matmul", what="8192^3", goal="-", measured=self.limits.matmul_flop_per_s / 1e12, unit="TFLOP/s"
        )
        yield from self._steps("Llama-3-8B", TINY if self.is_dry else LLAMA_3_8B)
        if not self.is_dry:
            yield from self._steps("SmolLM2-135M", SMOLLM2_135M)
        yield self._lora_op()
        yield self._decode_attention()
        yield self._prefill_attention()

    # --- G1 to G5: whole steps ---

    def _steps(self, name: str, shape: Shape) -> Iterator[Row]:
        weights = Weights(shape, self.dtype, self.device)
        context = 32 if self.is_dry else 1024
        batches = (2,) if self.is_dry else (1, 32, 64, 128)
        for num_rows in batches:
            base_s = self._step_s(shape, weights, num_rows=num_rows, context=context, num_adapters=0)
            num_bytes = shape.num_weight_bytes + num_rows * context * shape.num_kv_bytes_per_token
            floor_s = num_bytes / self.limits.copy_bytes_per_s
            what = f"{name}, B {num_rows}, context {context}"
            yield Row(metric="G1", what=f"{what}: roofline floor over step", goal=">= .75", measured=floor_s / base_s)
            yield Row(metric="step", what=f"{what}: no LoRA", goal="-", measured=base_s * 1e3, unit="ms")
            yield from self._retentions(what, shape, weights, num_rows, context, base_s, floor_s)
        del weights
        self._clear()

    def _retentions(
        self, what: str, shape: Shape, weights: Weights, num_rows: int, context: int, base_s: float, floor_s: float
    ) -> Iterator[Row]:
        for distinct in dict.fromkeys((1, num_rows)):
            lora_s = self._step_s(shape, weights, num_rows=num_rows, context=context, num_adapters=distinct)
            physical = floor_s / (floor_s + distinct * shape.num_adapter_bytes(16) / self.limits.copy_bytes_per_s)
            label = f"{what}, {distinct} adapters of rank 16"
            yield Row(metric="G3", what=f"{label}: retention", goal=">= .93", measured=base_s / lora_s)
            yield Row(
                metric="G2",
                what=f"{label}: retention over the possible",
                goal=">= .90",
                measured=base_s / lora_s / physical,
            )
        idle_s = self._step_s(shape, weights, num_rows=num_rows, context=context, num_adapters=1, is_base_only=True)
        yield Row(metric="G4", what=f"{what}: launches without rows", goal=">= .98", measured=base_s / idle_s)

    def _step_s(self, shape: Shape, weights: Weights, **options: int) -> float:
        step = DecodeStep(shape, weights=weights, dtype=self.dtype, device=self.device, **options)  # type: ignore[arg-type]
        seconds = self.watch.seconds(step)
        assert bool(torch.isfinite(step.logits).all()), f"logits that are not finite: {options}"
        del step
        self._clear()
        return seconds

    def _clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- G6 to G8: single operators ---

    def _lora_op(self) -> Row:
        """One site of 4096 to 4096, 64 rows with an adapter each."""
        side, rows = (64, 4) if self.is_dry else (4096, 64)
        shape = Shape(num_layers=1, hidden=side, inner=side, heads=side // 64, kv_heads=1, head_dim=64, vocab=128)
        step = DecodeStep(shape, num_rows=rows, context=16, num_adapters=rows, dtype=self.dtype, device=self.device)
        x, out = torch.ones(rows, side, dtype=self.dtype, device=self.device), step.delta

        def with_lora() -> None:
            step._project(x, step.weights.layers[0][1], out, 1)

        def without() -> None:
            torch.mm(x, step.weights.layers[0][1].T, out=out)

        seconds = self.watch.seconds(with_lora) - self.watch.seconds(without)
        return Row(
            metric="G6",
            what=f"LoRA on one {side} x {side}, rank 16, {rows} distinct",
            goal="<= 20 us",
            measured=seconds * 1e6,
            unit="us",
        )

    def _decode_attention(self) -> Row:
        rows, context, heads, kv_heads, dim = (2, 32, 4, 2, 16) if self.is_dry else (64, 2048, 32, 8, 128)
        columns = context // 16
        kv = torch.zeros(rows * columns, 2, kv_heads, 16, dim, dtype=self.dtype, device=self.device)
        table = torch.randperm(rows * columns, device=self.device).view(rows, columns).to(torch.int32)
        query = torch.ones(rows, heads, dim, dtype=self.dtype, device=self.device)
        lens, out = torch.full((rows,), context, dtype=torch.int32, device=self.device), torch.empty_like(query)
        splits = attention_configs.num_splits(chip_of(self.device), rows, kv_heads, context)
        scratch = DecodeScratch.reserve(
            num_sequences=rows, num_heads=heads, head_dim=dim, splits=splits, device=self.device
        )
        seconds = self.watch.seconds(
            lambda: decode_attention(query, kv[:, 0], kv[:, 1], table, lens, out, scratch, splits=splits)
        )
        fraction = kv.numel() * kv.element_size() / seconds / self.limits.copy_bytes_per_s
        return Row(
            metric="G7",
            what=f"decode attention, B {rows}, context {context}, over the copy rate",
            goal=">= .80",
            measured=fraction,
        )

    def _prefill_attention(self) -> Row:
        number, length, heads, kv_heads, dim = (2, 32, 4, 2, 16) if self.is_dry else (8, 2048, 32, 8, 128)
        columns, rows = length // 16, number * length
        kv = torch.zeros(number * columns, 2, kv_heads, 16, dim, dtype=self.dtype, device=self.device)
        table = torch.randperm(number * columns, device=self.device).view(number, columns).to(torch.int32)
        query = torch.ones(rows, heads, dim, dtype=self.dtype, device=self.device)
        lens, out = torch.full((number,), length, dtype=torch.int32, device=self.device), torch.empty_like(query)
        group = heads // kv_heads
        config = attention_configs.prefill(chip_of(self.device), dim, length, group, self.dtype)
        tiles = PrefillTiles.of([length] * number, block_m=config.block_m, group=group, device=self.device)
        seconds = self.watch.seconds(
            lambda: prefill_attention(query, kv[:, 0], kv[:, 1], table, lens, out, tiles, config)
        )
        flop = 4 * number * heads * dim * length * (length + 1) / 2
        return Row(
            metric="G8",
            what=f"causal prefill attention, {number} x {length}",
            goal=">= 350",
            measured=flop / seconds / 1e12,
            unit="TFLOP/s",
        )


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


def _multiply(a: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(a, a, out=out)


def table(rows: list[Row]) -> str:
    lines = ["| goal | what | wanted | measured |", "|---|---|---|---:|"]
    lines += [f"| {row.metric} | {row.what} | {row.goal} | {row.measured:.3g} {row.unit} |" for row in rows]
    return "\n".join(lines)


def main(announce: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device is here: --dry-run proves the plumbing on the CPU")
    if options.dry_run:
        accept_loaded_loop_bounds()
    device = torch.device("cpu" if options.dry_run else "cuda")
    rows: list[Row] = []
    for row in Bench(device, is_dry=options.dry_run).rows():
        rows.append(row)
        announce(f"{row.metric}  {row.what}: {row.measured:.4g} {row.unit}")
    announce(table(rows))
    if options.out is not None:
        name = "dry run" if options.dry_run else torch.cuda.get_device_name()
        result = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"gpu-{name.replace(' ', '-').lower()}.json"
        path.write_text(json.dumps({**result, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
