"""``loraplex frontend | scheduler | worker``: one process, by its own flags."""

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Final

import typer

from loraplex_cli.console import CommandFailed

PASS_THROUGH: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_EXTRAS: Final = {"frontend": "serve", "scheduler": "serve", "worker": "worker"}


def add_to(app: typer.Typer) -> None:
    """Adds the three commands."""
    for process in _EXTRAS:
        app.command(
            process, help=f"Run one {process} process; flags: loraplex {process} --help.", context_settings=PASS_THROUGH
        )(_command(process))


def _command(process: str) -> Callable[[typer.Context], None]:
    def become(context: typer.Context) -> None:
        module = f"loraplex_{process}"
        if importlib.util.find_spec(f"{module}.__main__") is None:
            raise CommandFailed(f"{module} is not installed: pip install 'loraplex[{_EXTRAS[process]}]'")
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])

    return become
