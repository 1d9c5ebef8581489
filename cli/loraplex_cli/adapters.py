"""``loraplex adapters``: register, list, show and remove adapters."""

from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.target import DEFAULT_TARGET, CaFile, Target, Token, UseTls, connect
from loraplex_client import Adapter

app = typer.Typer(help="Register, list, show and remove adapters.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The adapter's name.")]


@app.command()
def register(
    name: Name,
    source: Annotated[str, typer.Argument(metavar="PATH", help="Folder as PEFT saved it, or a URI.")],
    allow_update: Annotated[bool, typer.Option("--allow-update", help="Move a name that exists.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Report, but store nothing.")] = False,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Validate and store one version, and point the name at it."""
    with connect(target, token, ca, tls) as client:
        path = source if "://" in source else Path(source)
        adapter = client.register_adapter(name, path, allow_update=allow_update, validate_only=validate_only)
    typer.echo("valid; nothing was stored" if validate_only else "registered")
    _print(adapter)


@app.command("list")
def list_adapters(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.")] = "",
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """One line for each adapter: name, version, state, rank, bytes, digest."""
    with connect(target, token, ca, tls) as client:
        for adapter in client.list_adapters(prefix):
            version, report = adapter.version, adapter.version.report
            typer.echo(
                f"{adapter.name:24} v{version.number:<4} {adapter.state:10} rank {report.max_rank:<4} "
                f"{report.num_bytes:>12,} B  {version.digest[:12]}"
            )


@app.command()
def show(
    name: Name, target: Target = DEFAULT_TARGET, token: Token = None, ca: CaFile = None, tls: UseTls = False
) -> None:
    """What is applied, module by module, and where it is loaded."""
    with connect(target, token, ca, tls) as client:
        _print(client.get_adapter(name))


@app.command()
def rm(
    name: Name,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the requests that use it, instead of waiting.")] = False,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Remove an adapter; answers when every worker has freed its memory."""
    with connect(target, token, ca, tls) as client:
        client.unregister_adapter(name, cancel_running=cancel)
    typer.echo(f"removed {name}")


def _print(adapter: Adapter) -> None:
    version, report = adapter.version, adapter.version.report
    typer.echo(f"{adapter.name}  version {version.number}  {adapter.state}  digest {version.digest}")
    typer.echo(f"{report.kind}, up to rank {report.max_rank}, {report.dtype}, {report.num_bytes:,} bytes")
    for module in report.modules:
        typer.echo(f"  {module.module:28} rank {module.rank:<4} scale {module.scale:g}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    for residency in adapter.residencies:
        typer.echo(f"on {residency.worker_id}: {residency.tier} ({residency.digest[:12]})")
    if adapter.error is not None:
        typer.echo(f"failed: {adapter.error.message} [{adapter.error.reason}]")
