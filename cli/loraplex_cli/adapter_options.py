"""Flags that the commands about adapters share, and what their texts mean."""

import datetime
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from loraplex_cli.console import CommandFailed
from loraplex_client import AdapterState, AdapterUpload

Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")]
States = Annotated[list[AdapterState] | None, typer.Option("--state", help="May be repeated.")]
Description = Annotated[str | None, typer.Option(help="For people.")]
ExpiresIn = Annotated[str | None, typer.Option(metavar="TIME", help="Unregister it by itself: 90s, 30m, 12h, 7d.")]
UploadId = Annotated[str | None, typer.Option(help="Of `loraplex adapters upload`, in place of a source.")]
Etag = Annotated[str, typer.Option(help="Only if it is still as it was shown with this etag.")]
Digest = Annotated[str, typer.Option("--expected-digest", help="Refuse a version with another digest.")]
RequestId = Annotated[str, typer.Option(help="The same command with the same id does nothing twice, for a day.")]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Report, but store nothing.")]

_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def labels_of(texts: list[str] | None) -> dict[str, str] | None:
    """None for none given. Raises CommandFailed for one without a key."""
    if texts is None:
        return None
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise CommandFailed(f"--label {text}: write KEY=VALUE")
        labels[key] = value
    return labels


def expiry_of(text: str | None) -> datetime.datetime | None:
    """Raises CommandFailed for no such time."""
    if text is None:
        return None
    form = _DURATION.fullmatch(text)
    if form is None:
        raise CommandFailed(f"--expires-in {text}: write a number and s, m, h or d, such as 7d")
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=int(form[1]) * _SECONDS[form[2]])


def source_of(source: str | None, upload_id: str | None) -> str | Path | AdapterUpload | None:
    """None for neither. Raises CommandFailed for both."""
    if source is not None and upload_id is not None:
        raise CommandFailed("give a source or --upload-id, not both")
    if upload_id is not None:
        return AdapterUpload(upload_id=upload_id, files=(), expire_time=None)
    return source if source is None or "://" in source else Path(source)
