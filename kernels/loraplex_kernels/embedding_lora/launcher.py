"""Add the LoRA deltas of the embedding, in one launch."""

import torch
from torch import Tensor

from loraplex_kernels.chip import chip_of
from loraplex_kernels.embedding_lora import configs
from loraplex_kernels.lora.adapter_table import SiteTable
from loraplex_kernels.lora.plan import PlanBuffers
from loraplex_kernels.operands import FLOATS, require, require_one_device
from loraplex_kernels.triton_kernels import triton_kernels


def add_lora_embedding(token_ids: Tensor, out: Tensor, plan: PlanBuffers, table: SiteTable, pool: Tensor) -> None:
    """``out[t] += sum over the adapters of row t of weight * scale * B A[:, token_ids[t]]``, in place.

    Args:
        token_ids: [T] int64, each below the vocabulary's size.
        out: [T, hidden], rows may be strided; holds the base model's embedding.
        plan: whose rows are whose; the same as for the layers.
        table: one site, ``in_features`` is the vocabulary.
        pool: [E], the dtype of ``out``.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    shape = table.shape
    rows = {"token_ids": token_ids, "out": out}
    fits = token_ids.dim() == 1 and token_ids.dtype == torch.int64 and token_ids.is_contiguous() and out.dim() == 2
    fits = fits and out.shape == (token_ids.shape[0], *shape.out_sizes) and out.shape[0] >= plan.num_rows
    require(fits, f"token_ids [T] int64 and out [T, hidden] of {plan.num_rows} rows or more and {shape}", **rows)
    require(
        out.dtype == pool.dtype and out.dtype in FLOATS, f"out and pool of one dtype of {FLOATS}", out=out, pool=pool
    )
    fits = (out.stride(1) == 1 or out.shape[1] == 1) and pool.dim() == 1 and pool.is_contiguous()
    require(fits or out.shape[0] == 0, "features and pool must be contiguous", out=out, pool=pool)
    require_one_device(**rows, pool=pool, rows=plan.rows, sites=table.sites, slices=table.slices)
    if out.shape[0] == 0:
        return
    programs = chip_of(out.device).num_sms * configs.PROGRAMS_PER_SM
    triton_kernels("embedding_lora").embedding_lora_kernel[(programs,)](
        tokens_ptr=token_ids,
        out_ptr=out,
        pool_ptr=pool,
        slices_ptr=table.slices,
        sites_ptr=table.sites,
        scales_ptr=table.scales,
        counts_ptr=plan.counts,
        tiles_ptr=plan.expand_tiles,
        rows_ptr=plan.rows,
        adapters_ptr=plan.adapters,
        weights_ptr=plan.weights,
        HIDDEN=out.shape[1],
        stride_out_t=out.stride(0),
        BLOCK_M=max(plan.block_m, configs.MIN_BLOCK_M),
        BLOCK_R=configs.BLOCK_R,
        BLOCK_N=configs.BLOCK_N,
        num_warps=configs.NUM_WARPS,
    )
