"""SiLU of the gate times up."""

from torch import Tensor

from loraplex_kernels.activation import configs
from loraplex_kernels.operands import FLOATS, ceil_div, require, require_one_device
from loraplex_kernels.triton_kernels import triton_kernels


def silu_and_multiply(gate_up: Tensor, out: Tensor) -> None:
    """``out = silu(gate) * up``.

    Args:
        gate_up: [T, 2 * I], rows may be strided: gate before up.
        out: [T, I], rows may be strided; may be the first half of ``gate_up``.

    Raises:
        ValueError: operands that do not fit; ``out`` is then unchanged.
    """
    fits = gate_up.dim() == out.dim() == 2 and gate_up.shape == (out.shape[0], 2 * out.shape[1])
    require(fits, "gate_up must be [T, 2 * I], out [T, I]", gate_up=gate_up, out=out)
    require(gate_up.dtype == out.dtype and out.dtype in FLOATS, "one dtype", gate_up=gate_up, out=out)
    contiguous = gate_up.stride(1) == 1 and (out.stride(1) == 1 or out.shape[1] == 1)
    require(contiguous or not out.numel(), "features must be contiguous", gate_up=gate_up, out=out)
    require_one_device(gate_up=gate_up, out=out)
    if out.numel() == 0:
        return
    grid = (out.shape[0], ceil_div(out.shape[1], configs.BLOCK_FEATURES))
    triton_kernels("activation").silu_and_multiply_kernel[grid](
        x_ptr=gate_up,
        out_ptr=out,
        N=out.shape[1],
        stride_x_t=gate_up.stride(0),
        stride_out_t=out.stride(0),
        BLOCK_I=configs.BLOCK_FEATURES,
        num_warps=configs.NUM_WARPS,
    )
