"""``loraplex adapters``: the whole life of adapters."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.adapter_options import (
    Description,
    Digest,
    Etag,
    ExpiresIn,
    Labels,
    Name,
    RequestId,
    States,
    UploadId,
    ValidateOnly,
    expiry_of,
    labels_of,
    source_of,
)
from loraplex_cli.adapter_view import line_of, print_adapter, violations_told
from loraplex_cli.console import CommandFailed
from loraplex_cli.target import DEFAULT_TARGET, CaFile, Target, Token, UseTls, connect
from loraplex_client import AdapterChanges

app = typer.Typer(help="Register, upload, list, show, update, watch and remove adapters.", no_args_is_help=True)


@app.command()
def register(
    name: Name,
    source: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Folder of the server, or a URI that it allows.")
    ] = None,
    upload_id: UploadId = None,
    allow_update: Annotated[bool, typer.Option("--allow-update", help="Move a name that exists.")] = False,
    validate_only: ValidateOnly = False,
    label: Labels = None,
    description: Description = None,
    expires_in: ExpiresIn = None,
    expected_digest: Digest = "",
    request_id: RequestId = "",
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Validate and store one version, and point the name at it."""
    given = source_of(source, upload_id)
    if given is None:
        raise CommandFailed("give the adapter's folder, its URI, or --upload-id")
    with violations_told(), connect(target, token, ca, tls) as client:
        adapter = client.register_adapter(
            name,
            given,
            allow_update=allow_update,
            validate_only=validate_only,
            labels=labels_of(label),
            description=description or "",
            expire_time=expiry_of(expires_in),
            expected_digest=expected_digest,
            request_id=request_id,
        )
    typer.echo("valid; nothing was stored" if validate_only else "registered")
    print_adapter(adapter)


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(help="Folder of this machine, as PEFT saved it.")],
    resume: Annotated[str, typer.Option(metavar="UPLOAD_ID", help="Go on with an upload that broke.")] = "",
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Send an adapter to the server, and print the upload's id for `register --upload-id`."""
    with connect(target, token, ca, tls) as client:
        done = client.upload_adapter(folder, upload_id=resume)
    typer.echo(done.upload_id)


@app.command("list")
def list_adapters(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.")] = "",
    label: Labels = None,
    state: States = None,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """One line for each adapter: name, version, state, rank, bytes, digest. All filters must hold."""
    with connect(target, token, ca, tls) as client:
        for adapter in client.list_adapters(prefix, states=state or (), labels=labels_of(label)):
            typer.echo(line_of(adapter))


@app.command()
def show(
    name: Name, target: Target = DEFAULT_TARGET, token: Token = None, ca: CaFile = None, tls: UseTls = False
) -> None:
    """What is applied, module by module, and where it is loaded."""
    with connect(target, token, ca, tls) as client:
        print_adapter(client.get_adapter(name))


@app.command()
def update(
    name: Name,
    source: Annotated[str | None, typer.Option(metavar="PATH", help="Of the next version: a folder or a URI.")] = None,
    upload_id: UploadId = None,
    label: Labels = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Take all labels away.")] = False,
    description: Description = None,
    expires_in: ExpiresIn = None,
    never_expires: Annotated[bool, typer.Option("--never-expires", help="Take the expiry away.")] = False,
    etag: Etag = "",
    expected_digest: Digest = "",
    validate_only: ValidateOnly = False,
    request_id: RequestId = "",
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Change what is given: labels (all at once), description, expiry, or the version."""
    if no_labels and label:
        raise CommandFailed("give --label or --no-labels, not both")
    with violations_told(), connect(target, token, ca, tls) as client:
        adapter = client.update_adapter(
            name,
            source=source_of(source, upload_id),
            labels={} if no_labels else labels_of(label),
            description=description,
            expire_time=expiry_of(expires_in),
            never_expires=never_expires,
            etag=etag,
            expected_digest=expected_digest,
            validate_only=validate_only,
            request_id=request_id,
        )
    typer.echo("valid; nothing was changed" if validate_only else "updated")
    print_adapter(adapter)


@app.command()
def watch(
    from_revision: Annotated[int, typer.Option(min=0, help="Go on after this revision; 0 = with the list.")] = 0,
    once: Annotated[bool, typer.Option("--once", help="End when the list is over.")] = False,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """The list, then every change as it comes, until Ctrl-C. Lines are as those of `list`."""
    with connect(target, token, ca, tls) as client, contextlib.suppress(KeyboardInterrupt):
        changes = client.watch_adapters(from_revision=from_revision)
        with contextlib.closing(changes):
            for change in changes:
                _tell(change)
                if once and change.is_list_complete:
                    return


def _tell(change: AdapterChanges) -> None:
    for adapter in change.adapters:
        typer.echo(line_of(adapter))
    if change.is_list_complete:
        typer.echo(f"-- revision {change.revision}")


@app.command()
def rm(
    name: Name,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the requests that use it, instead of waiting.")] = False,
    if_unused: Annotated[bool, typer.Option("--if-unused", help="Refuse if a request uses it.")] = False,
    etag: Etag = "",
    request_id: RequestId = "",
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Remove an adapter; answers when every worker has freed its memory."""
    with connect(target, token, ca, tls) as client:
        client.unregister_adapter(
            name, cancel_running=cancel, fail_if_in_use=if_unused, etag=etag, request_id=request_id
        )
    typer.echo(f"removed {name}")
