"""RMS norm of hidden states, and of the heads of q and k."""

from torch import Tensor

from loraplex_kernels.norm import configs
from loraplex_kernels.operands import FLOATS, ceil_div, next_power_of_2, require, require_one_device
from loraplex_kernels.triton_kernels import triton_kernels


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float, *, residual: Tensor | None = None) -> None:
    """``out = norm(x) * weight``; with ``residual``: first ``residual += x`` in place, then the norm of that.

    Args:
        x: [T, H], rows may be strided.
        weight: [H].
        out: [T, H], rows may be strided; may be ``x``.
        eps: added to the mean square.
        residual: [T, H], rows may be strided.

    Raises:
        ValueError: operands that do not fit; nothing is changed.
    """
    added = x if residual is None else residual
    operands = {"x": x, "weight": weight, "out": out, "residual": added}
    shapes = x.dim() == 2 and x.shape == out.shape == added.shape and weight.shape == x.shape[1:]
    require(shapes, "x, out and residual must be [T, H], weight [H]", **operands)
    require(x.dtype == weight.dtype == out.dtype == added.dtype and x.dtype in FLOATS, "one dtype", **operands)
    contiguous = all(tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 for tensor in operands.values())
    require(contiguous, "features must be contiguous", **operands)
    require(1 <= x.shape[1] <= configs.MAX_WIDTH, f"rows of 1 to {configs.MAX_WIDTH} features", **operands)
    require_one_device(**operands)
    if x.shape[0] == 0:
        return
    block = next_power_of_2(x.shape[1])
    triton_kernels("norm").rms_norm_kernel[(x.shape[0],)](
        x_ptr=x,
        residual_ptr=added,
        weight_ptr=weight,
        out_ptr=out,
        stride_x_t=x.stride(0),
        stride_residual_t=added.stride(0),
        stride_out_t=out.stride(0),
        eps=eps,
        H=x.shape[1],
        BLOCK_H=block,
        HAS_RESIDUAL=residual is not None,
        num_warps=configs.num_warps(block),
    )


def norm_heads(query_key: Tensor, q_weight: Tensor, k_weight: Tensor, num_heads: int, eps: float) -> None:
    """Norm every head of q and k, in place and in one launch.

    Args:
        query_key: [T, H + KH, D], the last dimension contiguous.
        q_weight: [D], of the first ``num_heads`` heads.
        k_weight: [D], of the others.
        num_heads: H.
        eps: added to the mean square.

    Raises:
        ValueError: operands that do not fit; nothing is changed.
    """
    operands = {"query_key": query_key, "q_weight": q_weight, "k_weight": k_weight}
    shapes = query_key.dim() == 3 and q_weight.shape == k_weight.shape == query_key.shape[2:]
    require(shapes, "query_key must be [T, heads, D], the weights [D]", **operands)
    require(0 <= num_heads <= query_key.shape[1], f"{num_heads} query heads", **operands)
    require(query_key.dtype == q_weight.dtype == k_weight.dtype and query_key.dtype in FLOATS, "one dtype", **operands)
    contiguous = all(tensor.stride(-1) == 1 for tensor in operands.values())
    require(contiguous or not query_key.numel(), "head features must be contiguous", **operands)
    require_one_device(**operands)
    rows, heads, head_dim = query_key.shape
    if query_key.numel() == 0:
        return
    triton_kernels("norm").norm_heads_kernel[(rows, ceil_div(heads, configs.BLOCK_HEADS))](
        x_ptr=query_key,
        q_weight_ptr=q_weight,
        k_weight_ptr=k_weight,
        stride_x_t=query_key.stride(0),
        stride_x_n=query_key.stride(1),
        eps=eps,
        N=heads,
        NUM_Q=num_heads,
        D=head_dim,
        BLOCK_N=configs.BLOCK_HEADS,
        BLOCK_D=next_power_of_2(head_dim),
        num_warps=configs.HEADS_NUM_WARPS,
    )
