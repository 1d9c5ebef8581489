"""The folders are the architecture: what lies where, and what must never appear."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "proto": "loraplex_contract",
    "frontend": "loraplex_frontend",
    "scheduler": "loraplex_scheduler",
    "worker": "loraplex_worker",
    "kernels": "loraplex_kernels",
    "adapters": "loraplex_adapters",
    "client": "loraplex_client",
    "cli": "loraplex_cli",
}


def sources() -> list[Path]:
    return [
        path
        for folder, package in PACKAGES.items()
        for path in sorted((ROOT / folder / package).rglob("*.py"))
        if "_pb2" not in path.name
    ]


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_each_folder_is_a_source_root_with_one_typed_package(folder, package):
    assert (ROOT / folder / package / "__init__.py").is_file()
    assert (ROOT / folder / package / "py.typed").is_file()
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_wire_namespace_has_no_init_files():
    assert not list((ROOT / "proto" / "loraplex").rglob("__init__.py"))


def test_no_module_has_a_name_that_says_nothing():
    vague = [path for path in sources() if path.stem in {"utils", "util", "common", "helpers", "misc", "manager"}]
    assert vague == []


def test_nothing_that_runs_code_from_data_is_used():
    dangerous = re.compile(
        r"\b(import pickle|from pickle|import marshal|import dill|torch\.load\(|(?<![\w.])eval\(|(?<![\w.])exec\()"
    )
    found = [str(path.relative_to(ROOT)) for path in sources() if dangerous.search(path.read_text())]
    assert found == []


def test_every_task_belongs_to_a_task_group():
    orphan = re.compile(r"asyncio\.(create_task|ensure_future|gather)\(|loop\.create_task\(")
    found = [str(path.relative_to(ROOT)) for path in sources() if orphan.search(path.read_text())]
    assert found == []


def test_only_the_settings_loader_reads_the_environment_at_import():
    at_import = re.compile(r"^[A-Za-z_].*os\.environ", re.MULTILINE)
    found = [str(path.relative_to(ROOT)) for path in sources() if at_import.search(path.read_text())]
    assert found == []


def test_no_large_file_but_the_demo_adapters_is_tracked():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listing.decode().split("\0") if name]
    large = [
        path.relative_to(ROOT)
        for path in files
        if path.is_file()
        and path.stat().st_size > 400_000
        and path.relative_to(ROOT).parts[:2] != ("examples", "adapters")
    ]
    assert large == []
