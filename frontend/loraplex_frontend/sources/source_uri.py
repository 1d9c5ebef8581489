"""The uris of adapters that lie elsewhere, read strictly: what two parsers could read differently is refused.

``hf://org/repo[@revision][/folder]``, ``s3://bucket/folder``, ``gs://bucket/folder``, ``az://container/folder``,
``http://host[:port]/folder`` and ``https://...``. A folder holds adapter_config.json and adapter_model.safetensors.
"""

import dataclasses
import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from loraplex_contract.errors import InvalidArgument
from loraplex_frontend.request_limits import MAX_URI_CHARS

HF: Final = "hf"
HTTP: Final = ("http", "https")
OBJECT_STORES: Final = ("s3", "gs", "az")
SCHEMES: Final = (HF, *OBJECT_STORES, *HTTP)
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FORM: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9]*)://(?P<authority>[^/]*)(?P<path>(?:/[^/]*)*)")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_IPV6: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,254})")
_RAW: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%-]*")
_BAD_IN_SEGMENT: Final = re.compile(r"[\x00-\x1f\x7f/\\]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceUri:
    """One uri in parts; without credentials, query and fragment, which have no place in it."""

    scheme: str
    authority: str
    """Host, bucket, container, or the organisation on the hub. Lower case for hosts. Empty in allow-lists only: any."""
    port: int = 0
    """0 = the scheme's own."""
    path: tuple[str, ...] = ()
    """Decoded segments: never empty, ``.`` or ``..``. On the hub without the repository's revision."""
    revision: str = ""

    @property
    def text(self) -> str:
        port = f":{self.port}" if self.port else ""
        host = f"[{self.authority}]" if ":" in self.authority else self.authority
        segments = [quote(segment, safe="") for segment in self.path]
        if self.revision and segments:
            segments[0] += f"@{quote(self.revision, safe='')}"
        return f"{self.scheme}://{host}{port}{''.join(f'/{segment}' for segment in segments)}"


def is_remote(uri: str) -> bool:
    """Whether it is for this module at all; everything else is a folder here."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme.lower() != "file"


def parse_source_uri(uri: str) -> SourceUri:
    """
    Raises:
        InvalidArgument: no uri of these forms, or one with credentials, a query or a fragment (SOURCE_INVALID).
    """
    source = parse_source_prefix(uri)
    if not source.authority:
        raise _bad("names no host, bucket or organisation")
    if source.scheme == HF and not source.path:
        raise _bad("names no repository: hf://org/repo@revision")
    return source


def parse_source_prefix(uri: str) -> SourceUri:
    """As ``parse_source_uri``, also for what an allow-list says: the authority may be left out.

    Raises:
        InvalidArgument: as there.
    """
    if len(uri) > MAX_URI_CHARS:
        raise _bad(f"is longer than {MAX_URI_CHARS} characters")
    form = _FORM.fullmatch(uri)
    if form is None or form["scheme"] not in SCHEMES:
        raise _bad(f"must be file:///folder or one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if "?" in uri or "#" in uri:
        raise _bad("must have no query and no fragment")
    scheme, authority = form["scheme"], form["authority"]
    if "@" in authority:
        raise _bad("must have no credentials: the operator configures them")
    segments = form["path"].split("/")[1:]
    if segments and not segments[-1]:
        segments.pop()
    host, port = _host_and_port(scheme, authority)
    revision = ""
    if scheme == HF and segments:
        segments[0], revision = _split_revision(segments[0])
    path = tuple(_segment(segment) for segment in segments)
    return SourceUri(scheme=scheme, authority=host, port=port, path=path, revision=revision)


def _host_and_port(scheme: str, authority: str) -> tuple[str, int]:
    if not authority:
        return "", 0
    if scheme not in HTTP:
        if not _NAME.fullmatch(authority):
            raise _bad(f"names no {'organisation' if scheme == HF else 'bucket'}")
        return authority, 0
    return parse_host_and_port(scheme, authority)


def parse_host_and_port(scheme: str, authority: str) -> tuple[str, int]:
    """(host in lower case and without brackets, port or 0 for the scheme's own). Raises InvalidArgument."""
    ipv6 = _IPV6.match(authority)
    host, rest = (ipv6.group()[1:-1], authority[ipv6.end() :]) if ipv6 else _partition_port(authority)
    if not ipv6 and not _HOST.fullmatch(host):
        raise _bad("names no host")
    if not rest:
        return host.lower(), 0
    if not _PORT.fullmatch(rest[1:]) or rest[0] != ":" or int(rest[1:]) > 65_535:
        raise _bad("has no valid port")
    port = int(rest[1:])
    return host.lower(), 0 if port == DEFAULT_PORTS[scheme] else port


def _partition_port(authority: str) -> tuple[str, str]:
    host, colon, port = authority.partition(":")
    return host, colon + port


def _split_revision(repository: str) -> tuple[str, str]:
    name, at, revision = repository.partition("@")
    decoded = unquote_to_bytes(revision).decode("ascii", "replace")
    if at and (not _REVISION.fullmatch(decoded) or ".." in decoded):
        raise _bad("names no valid revision after @")
    if not _NAME.fullmatch(name):
        raise _bad("names no repository")
    return name, decoded


def _segment(raw: str) -> str:
    try:
        segment = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("has a path that is not UTF-8") from None
    if not _RAW.fullmatch(raw) or segment in ("", ".", "..") or _BAD_IN_SEGMENT.search(segment):
        raise _bad("has a path with an empty, dotted or unprintable segment")
    return segment


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(f"uri: {what}", reason="SOURCE_INVALID")
