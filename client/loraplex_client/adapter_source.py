"""Where an adapter comes from, as a URI."""

from pathlib import Path

from loraplex_contract.errors import field_error


def adapter_uri(source: str | Path) -> str:
    """A URI as it is; a path as an absolute ``file://`` one, since the server has another working directory."""
    text = str(source)
    if not text:
        raise field_error("source", "is empty; give the adapter's folder or its URI")
    return text if "://" in text else Path(text).expanduser().absolute().as_uri()
