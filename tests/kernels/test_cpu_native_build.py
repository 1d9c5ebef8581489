"""How the native library gets onto a machine, and what happens where it cannot."""

import logging
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplex_kernels.cpu_native import build, library
from loraplex_kernels.cpu_native.instruction_set import InstructionSet, best_of, detect

FAKE_COMPILER = """#!/bin/sh
echo "$@" >> {log}
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then echo made > "$2"; fi
  shift
done
"""
WIDE = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.fixture
def compiler_log(tmp_path: Path) -> Path:
    return tmp_path / "compiler.log"


@pytest.fixture
def environment(tmp_path: Path, compiler_log: Path) -> dict[str, str]:
    """A compiler that writes down how it was called, and a cache folder of our own."""
    compiler = script(tmp_path / "fake-cc", FAKE_COMPILER.format(log=compiler_log))
    return {"CXX": str(compiler), "LORAPLEX_CACHE_DIR": str(tmp_path / "cache")}


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_library_is_compiled_once_and_found_again(environment: dict[str, str], compiler_log: Path) -> None:
    first = build.cached_library(InstructionSet.AVX2, environment)
    calls = compiler_log.read_text()
    assert build.cached_library(InstructionSet.AVX2, environment) == first
    assert compiler_log.read_text() == calls
    assert first.read_text() == "made\n"


def test_two_at_once_compile_once(environment: dict[str, str], compiler_log: Path) -> None:
    both = threading.Barrier(4)

    def ask() -> None:
        both.wait(timeout=10)
        build.cached_library(InstructionSet.AVX512, environment)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(compiler_log.read_text().splitlines()) == 2, "the kernels, and the library from them"


def test_another_instruction_set_compiler_or_source_is_another_file(
    environment: dict[str, str], tmp_path: Path, compiler_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {build.cached_library(level, environment) for level in InstructionSet}
    other = script(tmp_path / "other-cc", FAKE_COMPILER.format(log=compiler_log))
    paths.add(build.cached_library(InstructionSet.AVX2, {**environment, "CXX": str(other)}))
    source = tmp_path / "source"
    source.mkdir()
    (source / "kernels.cpp").write_text("int changed;")
    monkeypatch.setattr(build, "SOURCE", source)
    paths.add(build.cached_library(InstructionSet.AVX2, environment))
    assert len(paths) == 5


def test_only_the_kernels_get_the_instruction_set_and_nothing_is_native(
    environment: dict[str, str], compiler_log: Path
) -> None:
    build.cached_library(InstructionSet.AVX512_BF16, environment)
    kernels, rest = compiler_log.read_text().splitlines()
    assert "-mavx512bf16" in kernels
    assert "-mavx" not in rest
    assert "-march" not in kernels + rest


def test_a_failed_compilation_says_why_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    broken = script(tmp_path / "broken-cc", "#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    with pytest.raises(build.BuildFailed, match="no such flag"):
        build.cached_library(InstructionSet.AVX2, {**environment, "CXX": str(broken)})
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_folder_that_others_may_write_to_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(build.BuildFailed, match="others may write"):
        build.cached_library(InstructionSet.AVX2, environment)


def test_a_cache_that_cannot_be_written_is_a_failed_build(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(build.BuildFailed, match="cannot be written"):
        build.cached_library(InstructionSet.AVX2, {**environment, "LORAPLEX_CACHE_DIR": str(tmp_path / "file")})


@pytest.fixture
def machine_without_compiler(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("LORAPLEX_CACHE_DIR", environment["LORAPLEX_CACHE_DIR"])
    library._load.cache_clear()
    with caplog.at_level(logging.INFO):
        yield
    library._load.cache_clear()


@pytest.mark.usefixtures("machine_without_compiler")
def test_without_a_compiler_torch_serves_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert library.library() is None
    assert library.library("auto") is None
    (record,) = caplog.records
    assert "torch path is used" in record.message
    assert "/nowhere/g++" in record.message or "AVX2" in record.message
    assert library.describe().startswith("torch operations: ")


@pytest.mark.usefixtures("machine_without_compiler")
def test_native_kernels_that_were_asked_for_and_cannot_be_had_are_an_error() -> None:
    with pytest.raises(library.NativeUnavailable):
        library.library("native")


@pytest.mark.usefixtures("machine_without_compiler")
def test_mode_torch_builds_nothing_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert library.library("torch") is None
    assert not caplog.records


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, native, torch"):
        library.library("fast")  # type: ignore[arg-type]


def test_a_library_for_a_higher_instruction_set_than_the_processor_has_is_refused() -> None:
    class Future(int):
        name = "FUTURE"

    best = detect()
    with pytest.raises((library.NativeUnavailable, build.BuildFailed), match=r"FUTURE|AVX2|compiler"):
        library.Library(str(library.load(best).path), Future(99))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (set(), None),
        ({"avx2"}, None),
        ({"avx2", "fma"}, InstructionSet.AVX2),
        ({"avx2", "fma", "avx512f"}, InstructionSet.AVX2),
        (WIDE, InstructionSet.AVX512),
        (WIDE | {"avx512_bf16"}, InstructionSet.AVX512_BF16),
        ({"avx2", "fma", "avx512_bf16"}, InstructionSet.AVX2),
    ],
)
def test_the_best_instruction_set_includes_all_below_it(flags: set[str], level: InstructionSet | None) -> None:
    assert best_of(flags) == level


def test_detection_reads_the_flags_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2 fma\n")
    assert detect(cpuinfo) is InstructionSet.AVX2
    assert detect(tmp_path / "missing") is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert detect(cpuinfo) is None
