"""The kernels together: a decode step of a small model equals the same step in float64 by torch alone."""

import pytest
import torch
from benchmarks.gpu.decode_step import TINY, DecodeStep, reference_logits
from tests.kernels.triton_suite.device import DEVICE, DTYPES, relative_error

RELATIVE_ERROR = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_without_rows_of_adapters_equals_torch(dtype):
    step = DecodeStep(TINY, num_rows=3, context=1, num_adapters=2, is_base_only=True, dtype=dtype, device=DEVICE)
    wanted = reference_logits(step, step.hidden.clone())
    step()
    assert relative_error(step.logits, wanted) < RELATIVE_ERROR[dtype]


def test_rows_with_adapters_differ_from_rows_without():
    step = DecodeStep(TINY, num_rows=3, context=1, num_adapters=2, dtype=torch.float32, device=DEVICE)
    base = reference_logits(step, step.hidden.clone())
    step()
    assert bool(torch.isfinite(step.logits).all())
    assert relative_error(step.logits, base) > 1e-2
