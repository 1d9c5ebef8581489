"""Add the LoRA deltas of one group of sites to the base result: one launch, or two."""

import dataclasses

import torch
from torch import Tensor

from loraplex_kernels.chip import Chip, chip_of
from loraplex_kernels.lora.adapter_table import SiteTable
from loraplex_kernels.lora.configs import LoraConfig
from loraplex_kernels.lora.plan import PlanBuffers
from loraplex_kernels.operands import FLOATS, require, require_one_device
from loraplex_kernels.triton_kernels import triton_kernels

_SHRINK, _EXPAND, _BOTH = 1, 2, 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraScratch:
    """Memory that launches of one stream share: no two of them may run at once."""

    low: Tensor
    """[elements] float32; the pairs' shrunk vectors."""
    barrier: Tensor
    """[1] int64, zero at first; every launch over it must have the same number of programs."""

    @classmethod
    def reserve(
        cls, *, num_pairs: int, num_sites: int, max_rank: int, splits: int, device: torch.device | str = "cpu"
    ) -> "LoraScratch":
        """Room for ``num_pairs`` pairs (the capacity of the plan) at ``num_sites`` sites of rank up to ``max_rank``."""
        elements = splits * num_pairs * num_sites * _rank_room(max_rank)
        low = torch.empty(elements, dtype=torch.float32, device=device)
        return cls(low=low, barrier=torch.zeros(1, dtype=torch.int64, device=device))


def add_lora(
    x: Tensor,
    out: Tensor,
    plan: PlanBuffers,
    table: SiteTable,
    pool: Tensor,
    scratch: LoraScratch,
    config: LoraConfig,
    *,
    max_rank: int | None = None,
    fused: bool = True,
) -> None:
    """``out[t] += sum over the adapters of row t of weight * scale * B A x[t]``, in place.

    Args:
        x: [T, in_features], rows may be strided.
        out: [T, sum of out_sizes], rows may be strided; holds the base result.
        plan: whose rows are whose; may be rewritten between replays of a captured launch.
        table: the group's sites.
        pool: [E], the dtype of ``x``.
        scratch: not in use by another stream.
        config: with the block sizes of the plan.
        max_rank: bound of the ranks of this and every replayed plan; the plan's own if None.
        fused: shrink and expand in one launch. Two launches do the same; the interpreter needs that where it runs more
            than one program.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    ranks = _rank_room(plan.max_rank if max_rank is None else max_rank)
    _check(x, out, plan, table, pool, scratch, config, ranks)
    if x.shape[0] == 0 or ranks == 0:
        return
    chip = chip_of(x.device)
    for phases in (_BOTH,) if fused else (_SHRINK, _EXPAND):
        _launch(phases, chip, x, out, plan, table, pool, scratch, config, ranks)


def num_programs(chip: Chip, config: LoraConfig, *, fused: bool) -> int:
    """The grid: what the chip holds at once, whatever the plan."""
    return 1 if fused and chip.is_serial else chip.num_sms * config.programs_per_sm


def _rank_room(max_rank: int) -> int:
    return -(-max_rank // 16) * 16


def _launch(
    phases: int,
    chip: Chip,
    x: Tensor,
    out: Tensor,
    plan: PlanBuffers,
    table: SiteTable,
    pool: Tensor,
    scratch: LoraScratch,
    config: LoraConfig,
    ranks: int,
) -> None:
    out_sizes = (*table.shape.out_sizes, 0, 0)[:3]
    triton_kernels("lora").lora_kernel[(num_programs(chip, config, fused=phases == _BOTH),)](
        x_ptr=x,
        out_ptr=out,
        pool_ptr=pool,
        slices_ptr=table.slices,
        sites_ptr=table.sites,
        scales_ptr=table.scales,
        low_ptr=scratch.low,
        counts_ptr=plan.counts,
        shrink_tiles_ptr=plan.shrink_tiles,
        expand_tiles_ptr=plan.expand_tiles,
        rows_ptr=plan.rows,
        adapters_ptr=plan.adapters,
        weights_ptr=plan.weights,
        barrier_ptr=scratch.barrier,
        K=table.shape.in_features,
        P=plan.capacity.num_pairs,
        R_SITE=ranks,
        OUT_0=out_sizes[0],
        OUT_1=out_sizes[1],
        OUT_2=out_sizes[2],
        stride_x_t=x.stride(0),
        stride_out_t=out.stride(0),
        PHASES=phases,
        G=len(table.shape.out_sizes),
        SPLITS=config.splits,
        BLOCK_M=config.block_m,
        BLOCK_R=config.block_r,
        BLOCK_K=config.block_k,
        BLOCK_N=config.block_n,
        EXPAND_R=config.expand_r,
        STAGES=config.num_stages,
        EXPAND_STAGES=config.expand_stages,
        num_warps=config.num_warps,
        # The driver refuses the launch rather than let programs wait for others that have no room to start.
        launch_cooperative_grid=phases == _BOTH,
    )


def _check(
    x: Tensor,
    out: Tensor,
    plan: PlanBuffers,
    table: SiteTable,
    pool: Tensor,
    scratch: LoraScratch,
    config: LoraConfig,
    ranks: int,
) -> None:
    shape = table.shape
    fits = x.dim() == out.dim() == 2 and x.shape[0] == out.shape[0] >= plan.num_rows
    require(fits, f"x and out must be 2-D with at least the plan's {plan.num_rows} rows", x=x, out=out)
    fits = x.shape[1] == shape.in_features and out.shape[1] == sum(shape.out_sizes)
    require(fits, f"x and out must have the features of {shape}", x=x, out=out)
    fits = x.dtype == out.dtype == pool.dtype and x.dtype in FLOATS
    require(fits, f"x, out and pool must have one dtype of {FLOATS}", x=x, out=out, pool=pool)
    contiguous = x.stride(1) in (1, 0) and out.stride(1) == 1 and pool.dim() == 1 and pool.is_contiguous()
    require(contiguous or x.shape[0] == 0, "features and pool must be contiguous", x=x, out=out, pool=pool)
    require((config.block_m, config.block_r) == (plan.block_m, plan.block_r), "config and plan differ in blocks", x=x)
    require(ranks <= _rank_room(table.max_rank) and plan.max_rank <= ranks, f"rank {plan.max_rank} over {ranks}", x=x)
    needed = config.splits * plan.capacity.num_pairs * len(shape.out_sizes) * ranks
    require(scratch.low.numel() >= needed, f"the scratch must hold {needed} elements", low=scratch.low)
    require_one_device(
        x=x, out=out, pool=pool, rows=plan.rows, sites=table.sites, slices=table.slices, low=scratch.low,
        barrier=scratch.barrier,
    )  # fmt: skip
