"""Compile the library once, and keep it in the user's cache under a name that says source, compiler, instruction set.

Any number of processes may ask at the same time: one compiles while the others wait for its lock, and the finished
file appears under its name in one piece.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from loraplex_kernels.cpu_native.instruction_set import InstructionSet

SOURCE = Path(__file__).parent / "source"
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-pthread")
_COMPILERS = ("g++", "c++", "clang++")
_TIMEOUT_S = 600.0


class BuildFailed(Exception):
    """There is no compiler, or it could not make the library; the message says which."""


def cached_library(level: InstructionSet, environment: Mapping[str, str]) -> Path:
    """The path of the compiled library; compiles it where the cache has none (some 10 seconds of one core).

    Args:
        level: what to compile for.
        environment: CXX names the compiler, LORAPLEX_CACHE_DIR or XDG_CACHE_HOME the folder.

    Raises:
        BuildFailed: no compiler, a compiler error, or a cache folder that cannot be written.
    """
    compiler = _compiler(environment)
    try:
        folder = _cache_folder(environment)
        _make_private(folder)
        path = folder / f"cpu-{level.name.lower()}-{_key(level, compiler)}.so"
        if not path.exists():
            with (folder / f"{path.stem}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    _compile(compiler, level, path)
    except OSError as error:
        raise BuildFailed(f"the cache folder cannot be written: {error}") from error
    return path


def _compiler(environment: Mapping[str, str]) -> str:
    given = environment.get("CXX")
    for name in (given,) if given else _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildFailed(f"no C++ compiler: {given or ', '.join(_COMPILERS)} not found; install g++ or set CXX")


def _cache_folder(environment: Mapping[str, str]) -> Path:
    own = environment.get("LORAPLEX_CACHE_DIR")
    if own:
        return Path(own) / "kernels"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraplex" / "kernels"


def _make_private(folder: Path) -> None:
    """What lies there is executed, so nobody else may write to it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise BuildFailed(f"others may write to {folder}; make it yours alone or set LORAPLEX_CACHE_DIR")


def _key(level: InstructionSet, compiler: str) -> str:
    """Changes with the source, the flags and the compiler's file."""
    digest = hashlib.sha256(repr((_FLAGS, level.compiler_flags)).encode())
    compiler_file = Path(compiler).resolve()
    digest.update(f"{compiler_file} {compiler_file.stat().st_mtime_ns}".encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, level: InstructionSet, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        kernels, library = Path(scratch) / "kernels.o", Path(scratch) / "library.so"
        # Only the kernels get the instruction set: what runs before the check of the processor must not use it.
        wide = [*level.compiler_flags, f"-DLPX_LEVEL={level.value}"]
        _run([compiler, *_FLAGS, *wide, "-c", "kernels.cpp", "-o", kernels])
        _run([compiler, *_FLAGS, "-shared", "native.cpp", kernels, "-o", library])
        library.replace(path)


def _run(command: list[str | Path]) -> None:
    try:
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{command[0]} took over {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed: {done.stderr.strip()[:2000]}")
