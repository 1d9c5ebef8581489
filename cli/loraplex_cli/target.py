"""Which server a command talks to."""

from pathlib import Path
from typing import Annotated

import typer

from loraplex_client import DEFAULT_TARGET, Client, Tls

Target = Annotated[str, typer.Option(envvar="LORAPLEX_TARGET", help="Address of a frontend.", show_envvar=True)]
Token = Annotated[str | None, typer.Option(envvar="LORAPLEX_TOKEN", help="Bearer token.", show_envvar=True)]
CaFile = Annotated[Path | None, typer.Option(help="Connect with TLS, trusting this PEM file.")]
UseTls = Annotated[bool, typer.Option("--tls", help="Connect with TLS, trusting the system's roots.")]

__all__ = ["DEFAULT_TARGET", "CaFile", "Target", "Token", "UseTls", "connect"]


def connect(target: str, token: str | None, ca: Path | None, tls: bool) -> Client:
    """A client for one command."""
    return Client(target, token=token, tls=Tls.from_files(ca=ca) if tls or ca else None)
