"""``loraplex model``: base models from other formats."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.console import CommandFailed

app = typer.Typer(help="Base models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Base models."""


@app.command()
def fetch(
    gguf: Annotated[Path | None, typer.Option(help="A GGUF file; none = the demo model's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write, with --gguf.")] = None,
) -> None:
    """Make a Hugging Face folder of a GGUF file, once, and print its path."""
    if (gguf is None) != (out is None):
        raise CommandFailed("give both --gguf and --out, or neither for the demo model")
    if missing := [name for name in ("gguf", "numpy", "tokenizers") if importlib.util.find_spec(name) is None]:
        raise CommandFailed(f"{', '.join(missing)} not installed: pip install 'loraplex[demo]'")
    # Here and not at the top: the client's install has none of this.
    from loraplex_worker import gguf_folder

    if gguf is None or out is None:
        typer.echo(str(gguf_folder.demo_model_folder()))
        return
    gguf_folder.convert(gguf, out)
    typer.echo(str(out))
