"""Where the checks run and how close they must come."""

import pytest
import torch
from tests.kernels.triton_suite.interpreter import accept_loaded_loop_bounds
from torch import Tensor

accept_loaded_loop_bounds()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter's tl.dot is wrong for bfloat16 (errors of 5e10), so bfloat16 is for a real device.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
RELATIVE_ERROR = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Norm of the error over norm of the result. Rounding of inputs is not counted: references get the rounded ones."""


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads memory that nobody wrote reads NaN."""
    real, real_like = torch.empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(1 << 30))

    monkeypatch.setattr(torch, "empty", lambda *size, **options: poison(real(*size, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: poison(real_like(like, **options)))


def randn(*size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def nan(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.full(size, float("nan"), dtype=dtype, device=DEVICE)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Infinite where ``got`` has a NaN."""
    error = float(
        torch.linalg.norm((got.double() - wanted.double()).cpu()) / (torch.linalg.norm(wanted.cpu().double()) + 1e-30)
    )
    return error if error == error else float("inf")


def assert_close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) < RELATIVE_ERROR[dtype]
