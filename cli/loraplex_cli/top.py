"""``loraplex top``: what the service does now, in the terminal."""

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from loraplex_cli.console import CommandFailed
from loraplex_cli.data_dir import default_data_dir
from loraplex_cli.metrics_reading import Reading, read
from loraplex_cli.target import CaFile, Token, UseTls
from loraplex_cli.top_view import view
from loraplex_client import Client, Tls
from loraplex_contract.errors import LoraplexError

FIRST_INTERVAL_S: Final = 0.5
"""Between the two readings that rates need, at the start."""


def top(
    admin: Annotated[
        str | None,
        typer.Option(envvar="LORAPLEX_ADMIN", help="Admin address of a frontend; none = of `loraplex up` here."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="/metrics addresses of any processes; none = of `loraplex up` here.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Of the `loraplex up` to look at.")] = None,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Show adapters by tier, queue, batch, tokens a second and step time, until Ctrl-C."""
    folder = (data_dir or default_data_dir()) / "run"
    address = admin or _admin_of(folder)
    # One address stands for both: nothing is asked of the public services.
    security = Tls.from_files(ca=ca) if tls or ca else None
    with Client(address, admin_target=address, token=token, tls=security) as client:
        before = _look(client, folder, admin, metrics)
        time.sleep(min(interval_s, FIRST_INTERVAL_S))
        after = _look(client, folder, admin, metrics)
        console = Console(highlight=False)
        if once:
            console.print(view(before, after))
            return
        with contextlib.suppress(KeyboardInterrupt), Live(view(before, after), console=console, screen=True) as live:
            while True:
                time.sleep(interval_s)
                before, after = after, _look(client, folder, admin, metrics)
                live.update(view(before, after))


def _look(client: Client, folder: Path, admin: str | None, metrics: list[str] | None) -> Reading:
    """Raises CommandFailed where nobody answers."""
    try:
        cluster = client.cluster()
    except LoraplexError as error:
        raise CommandFailed(f"the frontend does not answer on its admin address: {error.message}") from None
    if not metrics and admin is None:
        metrics = [address for ports in _port_files(folder).values() if (address := ports.get("metrics"))]
    return read(cluster, metrics or [])


def _admin_of(folder: Path) -> str:
    address = _port_files(folder).get("frontend", {}).get("admin_listen")
    if address is None:
        raise CommandFailed(f"no service of `loraplex up` found in {folder}: start one, or give --admin HOST:PORT")
    return address


def _port_files(folder: Path) -> dict[str, dict[str, str]]:
    """What the processes wrote, by name. Read at each look: a process that was started again may have moved."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = dict(json.loads(path.read_text()))
    return found
