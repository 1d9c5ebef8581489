"""What the tests of the native CPU kernels share."""

import pytest
import torch
from torch import Tensor

from loraplex_kernels.cpu_native.build import BuildFailed
from loraplex_kernels.cpu_native.instruction_set import InstructionSet, detect
from loraplex_kernels.cpu_native.library import Library, load


@pytest.fixture(scope="session", params=list(InstructionSet), ids=lambda level: level.name.lower())
def kernels(request: pytest.FixtureRequest) -> Library:
    """The library, for every instruction set that this processor has."""
    best = detect()
    if best is None or request.param > best:
        pytest.skip(f"this processor lacks {request.param.name}")
    try:
        return load(request.param)
    except BuildFailed as error:
        pytest.skip(str(error))


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads memory that nobody wrote reads NaN: outputs, and scratch whose every byte is 255."""
    real = torch.empty

    def poisoned(*size: object, **options: object) -> Tensor:
        tensor: Tensor = real(*size, **options)  # type: ignore[call-overload]
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(255 if tensor.dtype == torch.uint8 else -(1 << 30))

    monkeypatch.setattr(torch, "empty", poisoned)
