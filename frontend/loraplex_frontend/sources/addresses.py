"""Which addresses this server may connect to on behalf of a caller: public ones, and what the operator names.

A name is resolved once, every address of the answer is checked, and the connection goes to a checked address: what the
name says a moment later does not matter.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Final

from loraplex_frontend.sources.source_errors import broken, forbidden

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_METADATA: Final = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
)
"""Where clouds hand out credentials."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class AddressRules:
    """
    Args:
        is_private_allowed: of a host, as the uri has it: whether it may be a loopback or private address.
    """

    def __init__(self, is_private_allowed: Callable[[str], bool]) -> None:
        self._is_private_allowed = is_private_allowed

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Addresses to connect to, all of them checked.

        Raises:
            PermissionDenied: one of them is not allowed (SOURCE_FORBIDDEN).
            Unavailable: no such host, or the look-up failed (SOURCE_BROKEN).
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise broken("has a host name that cannot be resolved") from None
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses:
            raise broken("has a host name without an address")
        for address in addresses:
            self.check(host, address)
        return addresses

    def check(self, host: str, address: str) -> None:
        """Raises PermissionDenied (SOURCE_FORBIDDEN)."""
        parsed = _embedded(ipaddress.ip_address(address.partition("%")[0]))
        if parsed in _METADATA or parsed.is_link_local:
            raise forbidden("the host is a link-local or metadata address, which is never fetched from")
        if _is_public(parsed):
            return
        if parsed.is_multicast or parsed.is_unspecified or not self._is_private_allowed(host):
            raise forbidden("the host is no public address; setting adapter_source_private_hosts may name it")


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: the network treats them alike."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.sixtofour or address.teredo or address.is_site_local):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved
