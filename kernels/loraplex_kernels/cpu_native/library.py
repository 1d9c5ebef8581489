"""The compiled library: built or found, checked, and loaded once a process."""

import ctypes
import functools
import logging
import os
from typing import Final, Literal

from loraplex_kernels.cpu_native import build, structures
from loraplex_kernels.cpu_native.instruction_set import InstructionSet, detect

Mode = Literal["auto", "native", "torch"]
"""``auto``: this library where it can be had, else torch. ``native``: fail where it cannot be had. ``torch``: never."""
MODES: Final[tuple[Mode, ...]] = ("auto", "native", "torch")

_log = logging.getLogger(__name__)


class NativeUnavailable(Exception):
    """The library cannot be had on this machine; the message says why and what to do."""


class Library:
    """The C functions, typed. Calls release the GIL; two calls at once run one after the other."""

    def __init__(self, path: str, level: InstructionSet) -> None:
        self.path, self.level = path, level
        functions = ctypes.CDLL(path)
        functions.lpx_level.restype = ctypes.c_int64
        if functions.lpx_level() < level:
            raise NativeUnavailable(f"this processor lacks {level.name}, which {path} is compiled for")
        self._check_sizes(functions)
        pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.packed_elements = _typed(functions.lpx_packed_elements, count, number, count, count)
        self.pack = _typed(functions.lpx_pack, None, number, pointer, count, count, pointer)
        self.advise_huge = _typed(functions.lpx_advise_huge, None, pointer, count)
        self.first_misfit = _typed(functions.lpx_first_misfit, count, pointer, pointer)
        self.layers_scratch = _typed(functions.lpx_layers_scratch, count, pointer, pointer, count)
        self.layers = _typed(functions.lpx_layers, None, count, pointer, pointer, pointer, pointer)
        self.linear_scratch = _typed(functions.lpx_linear_scratch, count, pointer, number, count, pointer)
        self.linear = _typed(
            functions.lpx_linear,
            None,
            *(count, pointer, number, count, pointer, pointer, ctypes.c_float, pointer, pointer, pointer),
        )
        self.attention_scratch = _typed(functions.lpx_attention_scratch, count, pointer, pointer, count)
        self.attention = _typed(
            functions.lpx_attention, None, *(count, pointer, pointer, pointer, count, pointer, pointer, pointer)
        )

    @staticmethod
    def _check_sizes(functions: ctypes.CDLL) -> None:
        sizes = (ctypes.c_int64 * len(structures.ALL))()
        functions.lpx_sizes(sizes)
        assert list(sizes) == [ctypes.sizeof(struct) for struct in structures.ALL], "structures.py and abi.h differ"


def _typed(function: "ctypes._NamedFuncPointer", result: type | None, *arguments: type) -> "ctypes._NamedFuncPointer":
    function.restype = result
    function.argtypes = arguments
    return function


def library(mode: Mode = "auto") -> Library | None:
    """The library for this machine, or None where the torch path is to be used: by choice, or for want of a compiler.

    Compiles it where the cache has none, which takes seconds. Why there is none is logged once.

    Raises:
        NativeUnavailable: mode ``native``, and it cannot be had.
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"cpu_kernels={mode!r}: must be one of {', '.join(MODES)}")
    if mode == "torch":
        return None
    found = _load()
    if isinstance(found, Library):
        return found
    if mode == "native":
        raise NativeUnavailable(found)
    return None


@functools.cache
def _load() -> Library | str:
    """The library, or why there is none."""
    try:
        return load(detect())
    except (NativeUnavailable, build.BuildFailed, OSError) as error:
        reason = str(error)
    _log.warning("cpu kernels: %s; the slower torch path is used", reason)
    return reason


def load(level: InstructionSet | None) -> Library:
    """The library for one instruction set, which the processor must have.

    Raises:
        NativeUnavailable, BuildFailed, OSError: it cannot be built or loaded.
    """
    if level is None:
        raise NativeUnavailable("the kernels need Linux on x86-64 with AVX2")
    return Library(str(build.cached_library(level, os.environ)), level)


def describe() -> str:
    """One line for people: what the CPU engine computes with here."""
    found = _load()
    return f"native kernels for {found.level.name}" if isinstance(found, Library) else f"torch operations: {found}"
