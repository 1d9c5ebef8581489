"""``loraplex simulate``: the scheduler's core in virtual time, by its own flags."""

import importlib.util
import os
import sys
from typing import Final

import typer

from loraplex_cli.console import CommandFailed
from loraplex_cli.processes import PASS_THROUGH

_MODULE: Final = "loraplex_scheduler.simulation"
_NEEDS: Final = ("numpy", _MODULE)


def simulate(context: typer.Context) -> None:
    """Compare scheduling policies in virtual time; flags: loraplex simulate --help."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandFailed(f"{', '.join(missing)} is not installed: pip install 'loraplex[serve]'")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", _MODULE, *context.args])


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("simulate", context_settings=PASS_THROUGH)(simulate)
