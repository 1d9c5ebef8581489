"""The setting ``--metrics-listen``, the same in every process."""

from typing import Annotated

from pydantic import AfterValidator


def _checked(address: str) -> str:
    if address:
        split_address(address)
    return address


MetricsListen = Annotated[str, AfterValidator(_checked)]
"""HOST:PORT or empty."""


def split_address(address: str) -> tuple[str, int]:
    """``[::1]:9100`` has brackets, as in a URL. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{address!r} is no address: give HOST:PORT, e.g. 127.0.0.1:9100, or nothing for no metrics")
    return host.strip("[]"), int(port)
