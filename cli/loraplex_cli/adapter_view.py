"""Adapters as lines of text, and all that one is refused for."""

import contextlib
from collections.abc import Iterator

import typer

from loraplex_client import Adapter
from loraplex_contract.errors import LoraplexError


def line_of(adapter: Adapter) -> str:
    """Name, version, state, rank, bytes, digest, labels."""
    version, report = adapter.version, adapter.version.report
    labels = "".join(f"  {key}={value}" for key, value in sorted(adapter.labels.items()))
    return (
        f"{adapter.name:24} v{version.number:<4} {adapter.state:10} rank {report.max_rank:<4} "
        f"{report.num_bytes:>12,} B  {version.digest[:12]}{labels}"
    )


def print_adapter(adapter: Adapter) -> None:
    """Everything that is known of it, a line each."""
    version, report = adapter.version, adapter.version.report
    etag = f"  etag {adapter.etag}" if adapter.etag else ""
    typer.echo(f"{adapter.name}  version {version.number}  {adapter.state}  digest {version.digest}{etag}")
    typer.echo(f"{report.kind}, up to rank {report.max_rank}, {report.dtype}, {report.num_bytes:,} bytes")
    if adapter.description:
        typer.echo(adapter.description)
    for key, value in sorted(adapter.labels.items()):
        typer.echo(f"label {key}={value}")
    if adapter.expire_time is not None:
        typer.echo(f"expires {adapter.expire_time:%Y-%m-%d %H:%M:%S} UTC")
    for module in report.modules:
        typer.echo(
            f"  {module.module:28} rank {module.rank:<4} scale {module.scale:<8g} {module.dtype} {module.num_bytes:,} B"
        )
    for note in report.notes:
        typer.echo(f"note: {note}")
    for older in adapter.older_versions:
        typer.echo(f"still running: version {older.number}, {older.num_leases} requests ({older.digest[:12]})")
    for residency in adapter.residencies:
        typer.echo(f"on {residency.worker_id}: {residency.tier} ({residency.digest[:12]})")
    if adapter.error is not None:
        typer.echo(f"failed: {adapter.error.message} [{adapter.error.reason}]")
        print_violations(adapter.error, err=False)


def print_violations(error: LoraplexError, *, err: bool = True) -> None:
    """A line for each field, module and tensor, where there is more than the error itself says."""
    if len(error.violations) > 1:
        for violation in error.violations:
            typer.echo(f"  {violation.field}: {violation.description}", err=err)


@contextlib.contextmanager
def violations_told() -> Iterator[None]:
    """What the error's one line has no room for comes before it."""
    try:
        yield
    except LoraplexError as error:
        print_violations(error)
        raise
