"""Choose tokens, count them, and give their log-probabilities. Nothing here waits for the device."""

import dataclasses

import torch
from torch import Tensor

from loraplex_kernels.operands import ceil_div, require, require_one_device
from loraplex_kernels.sampling import configs
from loraplex_kernels.sampling.rows import History, SamplingRows
from loraplex_kernels.triton_kernels import triton_kernels


def sample(
    logits: Tensor,
    rows: SamplingRows,
    tokens: Tensor,
    *,
    adjusted: Tensor | None = None,
    history: History | None = None,
    masks: Tensor | None = None,
) -> None:
    """Choose the next token of each row.

    Args:
        logits: [N, V] float32, left as they are.
        rows: the parameters of the N rows.
        tokens: [N] int64, written; -1 where a row's logits are not all finite or no token is allowed.
        adjusted: [N, V] float32, scratch; needed where a row has penalties, bias or a mask.
        history: needed where a row names a slot.
        masks: [.., ceil(V / 32)] int32, see ``mask_bits``; needed where a row names one.

    Raises:
        ValueError: operands that do not fit; ``tokens`` is then unchanged.
    """
    _check_logits(logits)
    num_rows, vocab_size = logits.shape
    fits = tokens.shape == rows.temperature.shape == (num_rows,) and tokens.dtype == torch.int64
    require(
        fits and tokens.is_contiguous(),
        "tokens must be [N] int64, with parameters for N rows",
        tokens=tokens,
        logits=logits,
    )
    require_one_device(logits=logits, tokens=tokens, temperature=rows.temperature)
    if num_rows == 0:
        return
    source = logits
    if rows.any_adjusts:
        source = _adjust(logits, rows, adjusted, history, masks)
    config = configs.select(vocab_size)
    triton_kernels("sampling").sample_kernel[(num_rows,)](
        logits_ptr=logits,
        adjusted_ptr=source,
        adjusts_ptr=rows.adjusts,
        temperature_ptr=rows.temperature,
        top_k_ptr=rows.top_k,
        top_p_ptr=rows.top_p,
        min_p_floor_ptr=rows.min_p_floor,
        seeds_ptr=rows.seeds,
        positions_ptr=rows.positions,
        tokens_ptr=tokens,
        V=vocab_size,
        stride_logits_n=logits.stride(0),
        stride_adjusted_n=source.stride(0),
        BLOCK_V=config.block_v,
        num_warps=config.num_warps,
    )


def count_tokens(tokens: Tensor, rows: SamplingRows, history: History) -> None:
    """Add the chosen tokens to the histories of their rows; no two rows share a slot.

    Raises:
        ValueError: operands that do not fit; nothing is changed.
    """
    fits = tokens.shape == rows.history_slots.shape and tokens.dtype == torch.int64 and tokens.is_contiguous()
    require(fits, "tokens must be [N] int64, one for each row", tokens=tokens, history_slots=rows.history_slots)
    require_one_device(tokens=tokens, counts=history.counts)
    if tokens.shape[0] == 0:
        return
    triton_kernels("sampling").count_kernel[(ceil_div(tokens.shape[0], configs.COUNT_BLOCK_N),)](
        tokens_ptr=tokens,
        history_slots_ptr=rows.history_slots,
        counts_ptr=history.counts,
        N=tokens.shape[0],
        V=history.counts.shape[1],
        BLOCK_N=configs.COUNT_BLOCK_N,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Log-probabilities under the raw model. Entries that nobody asked for hold what they held."""

    logprob: Tensor
    """[N] float32, of the chosen token."""
    rank: Tensor
    """[N] int32, 1 = the likeliest."""
    top_ids: Tensor
    """[N, most] int32, the likeliest first, ties by id."""
    top_logprobs: Tensor
    """[N, most] float32."""

    @classmethod
    def reserve(cls, num_rows: int, most: int, *, device: torch.device | str = "cpu") -> "Logprobs":
        """Room for ``most`` likeliest tokens a row; entries that nobody asks for are 0."""
        return cls(
            logprob=torch.zeros(num_rows, dtype=torch.float32, device=device),
            rank=torch.zeros(num_rows, dtype=torch.int32, device=device),
            top_ids=torch.zeros(num_rows, most, dtype=torch.int32, device=device),
            top_logprobs=torch.zeros(num_rows, most, dtype=torch.float32, device=device),
        )


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: Tensor, out: Logprobs) -> None:
    """Describe one token of each row, before penalties, bias, masks and temperature.

    Args:
        logits: [N, V] float32, finite.
        tokens: [N] int64; a row below 0 is left out.
        num_top: [N] int32, how many of the likeliest tokens to list, at most what ``out`` has room for (the caller
            keeps to it: it is not read on the host); a row below 0 is left out.
        out: written.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    _check_logits(logits)
    num_rows, vocab_size = logits.shape
    fits = tokens.shape == num_top.shape == out.logprob.shape == (num_rows,) and out.top_ids.shape[0] == num_rows
    fits = fits and tokens.dtype == torch.int64 and num_top.dtype == torch.int32
    require(fits, "tokens [N] int64 and num_top [N] int32", logits=logits, tokens=tokens, num_top=num_top)
    require_one_device(logits=logits, tokens=tokens, num_top=num_top, logprob=out.logprob)
    if num_rows == 0:
        return
    config = configs.select(vocab_size)
    triton_kernels("sampling").logprob_kernel[(num_rows,)](
        logits_ptr=logits,
        tokens_ptr=tokens,
        num_top_ptr=num_top,
        logprob_ptr=out.logprob,
        rank_ptr=out.rank,
        top_ids_ptr=out.top_ids,
        top_logprobs_ptr=out.top_logprobs,
        V=vocab_size,
        n_most=out.top_ids.shape[1],
        stride_logits_n=logits.stride(0),
        BLOCK_V=config.block_v,
        num_warps=config.num_warps,
    )


def _adjust(
    logits: Tensor, rows: SamplingRows, adjusted: Tensor | None, history: History | None, masks: Tensor | None
) -> Tensor:
    num_rows, vocab_size = logits.shape
    if adjusted is None or (rows.names_history and history is None) or (rows.names_masks and masks is None):
        raise ValueError("penalties need `history`, masks `masks`, and both and a bias the scratch `adjusted`")
    fits = adjusted.shape == logits.shape and adjusted.dtype == torch.float32 and adjusted.stride(1) == 1
    require(fits, "adjusted must be like logits", adjusted=adjusted, logits=logits)
    counts = rows.history_slots if history is None else history.counts
    fits = history is None or counts.shape[1] == vocab_size
    require(fits, "the history must be of this vocabulary", counts=counts, logits=logits)
    bits = rows.mask_rows.view(-1, 1) if masks is None else masks
    fits = masks is None or (bits.shape[1] == ceil_div(vocab_size, 32) and bits.dtype == torch.int32)
    require(fits and bits.is_contiguous(), "masks must be [.., ceil(V / 32)] int32", masks=bits, logits=logits)
    require_one_device(logits=logits, adjusted=adjusted, counts=counts, masks=bits)
    triton_kernels("sampling").adjust_kernel[(num_rows, ceil_div(vocab_size, configs.ADJUST_BLOCK_V))](
        logits_ptr=logits,
        adjusted_ptr=adjusted,
        adjusts_ptr=rows.adjusts,
        penalties_ptr=rows.penalties,
        history_slots_ptr=rows.history_slots,
        counts_ptr=counts,
        mask_rows_ptr=rows.mask_rows,
        masks_ptr=bits,
        bias_counts_ptr=rows.bias_counts,
        bias_ids_ptr=rows.bias_ids,
        bias_values_ptr=rows.bias_values,
        V=vocab_size,
        n_words=bits.shape[1],
        n_bias=rows.bias_ids.shape[1],
        stride_logits_n=logits.stride(0),
        stride_adjusted_n=adjusted.stride(0),
        BLOCK_V=configs.ADJUST_BLOCK_V,
        num_warps=configs.ADJUST_NUM_WARPS,
    )
    return adjusted


def _check_logits(logits: Tensor) -> None:
    fits = logits.dim() == 2 and logits.dtype == torch.float32 and logits.shape[1] >= 1
    require(fits and (logits.stride(1) == 1 or logits.shape[1] == 1), "logits must be [N, V] float32", logits=logits)
