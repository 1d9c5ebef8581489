"""Triton's kernels of an operator, imported when first launched: the CPU path works where Triton is not installed."""

import importlib
from typing import Any


def triton_kernels(operator: str) -> Any:
    """The module ``kernel`` of ``operator``. Triton ships no types, so neither has what it decorates.

    Raises:
        ModuleNotFoundError: Triton is not installed.
    """
    return importlib.import_module(f"loraplex_kernels.{operator}.kernel")
