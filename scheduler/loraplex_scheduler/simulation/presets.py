"""The machines that workloads run on. "Notes" are the project's performance notes of 2026-11-23.

cpu
    SmolLM2-135M in bf16 on two cores. Notes 3.4: 269 MB of weights, 269 MFLOP a decoded token, 212 a prefilled one,
    23,040 B of KV a token, 23 GB/s. ``benchmarks/results/2026-11-23-cpu.json``, engine alone: 32 requests of 128 in and
    32 out take 6.22 s without LoRA, hence 1.144 TFLOP at 184 GFLOP/s: 1.15 ms a prefilled row, 1.46 ms a decoded one.
    With 8 and 32 adapters of rank 16: 17.0 and 13.3 s, on the mean 8.9 s more for 5,120 rows: 1.74 ms a row, taken as
    proportional to the rank (the engine of that day, not what the hardware could do). A load takes 2 to 10 ms for rank
    16 from the local disk (notes, C13, "limit"): the upper end is taken.
h100
    Llama-3-8B in bf16, notes 3.1 to 3.3: 15.01 GB of weights, 15.0 GFLOP a decoded token, 13.96 a prefilled one,
    131,072 B of KV a token, 2.62 M parameters a rank, 3.0 TB/s, 798 TFLOP/s, 1.3 us a kernel in a graph, 55 GB/s over
    PCIe. All at 75 % of these (G1's "floor"), 6 LoRA kernels a layer, 160 us of host gap (vLLM's, notes 1.5).
a100-7b, a100-13b, a10g-7b
    S-LoRA's settings (notes 1.1): Llama-7B and 13B in fp16 on 80 or 24 GB, adapters on q, k, v, o. Weights and KV by
    shape (13.5 and 26.0 GB; 524,288 and 819,200 B a token), 1.7 and 0.5 TB/s, 200 and 60 TFLOP/s. The overhead of a
    step and the cost of LoRA rows were chosen by hand so that saturated throughput comes near their tables, first come
    first served: A100 S2 with 1,000 adapters 6.9 requests/s (theirs 6.7), A100 S4 with 400 adapters 3.9 (theirs 4.1).
"""

from typing import Final

from loraplex_scheduler.simulation.cost_model import CostModel, LoadCost
from loraplex_scheduler.simulation.preset import Preset

MIB: Final = 1 << 20
MS: Final = 1e6
US: Final = 1e3

CPU: Final = Preset(
    name="cpu",
    step=CostModel(
        overhead_ns=1.0 * MS,
        weights_ns=269e6 / 23.0,
        decode_row_ns=269e6 / 184.0,
        prefill_row_ns=212e6 / 184.0,
        kv_token_ns=23_040 / 23.0,
        lora_row_ns=0.0,
        lora_rank_row_ns=1.74 * MS / 16,
        lora_step_ns=0.0,
        adapter_byte_ns=1 / 23.0,
        hides_reads=True,
    ),
    load=LoadCost(fixed_ns=2 * MS, byte_ns=8 * MS / 9.77e6, num_channels=2),
    kv_token_bytes=23_040,
    pool_bytes=512 * MIB,
    parameters_per_rank=305_280,
    max_context_tokens=2048,
)

_H100_EFFICIENCY: Final = 0.75
H100: Final = Preset(
    name="h100",
    step=CostModel(
        overhead_ns=160 * US,
        weights_ns=15.01e9 / (3_000 * _H100_EFFICIENCY),
        decode_row_ns=15.0e9 / (798_000 * _H100_EFFICIENCY),
        prefill_row_ns=13.96e9 / (798_000 * _H100_EFFICIENCY),
        kv_token_ns=131_072 / (3_000 * _H100_EFFICIENCY),
        lora_row_ns=0.0,
        lora_rank_row_ns=2 * 2.62e6 / (798_000 * _H100_EFFICIENCY),
        lora_step_ns=6 * 32 * 1.3 * US,
        adapter_byte_ns=1 / (3_000 * _H100_EFFICIENCY),
        hides_reads=False,
    ),
    load=LoadCost(fixed_ns=300 * US, byte_ns=1 / 55.0, num_channels=1),
    kv_token_bytes=131_072,
    pool_bytes=56 * 1024 * MIB,
    parameters_per_rank=2_620_000,
    max_step_tokens=2048,
)


def _llama_fp16(
    name: str,
    *,
    weights_gb: float,
    kv_token_bytes: int,
    parameters_per_rank: int,
    pool_gb: float,
    gb_per_s: float,
    tflop_per_s: float,
    overhead_ms: float,
    lora_row_us: float,
    max_step_tokens: int,
) -> Preset:
    """One of S-LoRA's settings: fp16, so that a row costs as many FLOP as there are weight bytes."""
    return Preset(
        name=name,
        step=CostModel(
            overhead_ns=overhead_ms * MS,
            weights_ns=weights_gb * 1e9 / gb_per_s,
            decode_row_ns=weights_gb * 1e6 / tflop_per_s,
            prefill_row_ns=weights_gb * 1e6 / tflop_per_s,
            kv_token_ns=kv_token_bytes / gb_per_s,
            lora_row_ns=lora_row_us * US,
            lora_rank_row_ns=0.4 * US,
            lora_step_ns=0.0,
            adapter_byte_ns=1 / gb_per_s,
            hides_reads=False,
        ),
        load=LoadCost(fixed_ns=1 * MS, byte_ns=1 / 20.0, num_channels=1),
        kv_token_bytes=kv_token_bytes,
        pool_bytes=int(pool_gb * 1e9),
        parameters_per_rank=parameters_per_rank,
        max_step_tokens=max_step_tokens,
    )


A100_7B: Final = _llama_fp16(
    "a100-7b",
    weights_gb=13.5,
    kv_token_bytes=524_288,
    parameters_per_rank=1_048_576,
    pool_gb=58.0,
    gb_per_s=1_700,
    tflop_per_s=200,
    overhead_ms=20.0,
    lora_row_us=35.0,
    max_step_tokens=1024,
)
A100_13B: Final = _llama_fp16(
    "a100-13b",
    weights_gb=26.0,
    kv_token_bytes=819_200,
    parameters_per_rank=1_638_400,
    pool_gb=46.0,
    gb_per_s=1_700,
    tflop_per_s=200,
    overhead_ms=25.0,
    lora_row_us=50.0,
    max_step_tokens=1024,
)
A10G_7B: Final = _llama_fp16(
    "a10g-7b",
    weights_gb=13.5,
    kv_token_bytes=524_288,
    parameters_per_rank=1_048_576,
    pool_gb=8.0,
    gb_per_s=500,
    tflop_per_s=60,
    overhead_ms=20.0,
    lora_row_us=60.0,
    max_step_tokens=512,
)
PRESETS: Final = {preset.name: preset for preset in (CPU, H100, A100_7B, A100_13B, A10G_7B)}
