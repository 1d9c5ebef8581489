"""Triton 3.6's interpreter under NumPy 2.4, which no longer turns an array of one element into a Python integer.

Loop bounds that a kernel reads from memory are such arrays. Loaded before any kernel where Triton interprets.
"""

import importlib
from typing import Any


def accept_loaded_loop_bounds() -> None:
    """Let ``range`` take what ``tl.load`` gave. Does nothing where kernels are compiled."""
    if not importlib.import_module("triton").knobs.runtime.interpret:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched  # type: ignore[attr-defined]
