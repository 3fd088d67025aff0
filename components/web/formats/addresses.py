"""Which network addresses a fetch may connect to, and the resolver that enforces it.

The check is inside the connector's own resolver, so the connection goes to the very address that was checked: a
name that answers with a global address once and a private one later (DNS rebinding) is refused the second time.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: carries an IPv4 address in its last 32 bits


class RefusedAddress(OSError):
    """The host's address is not a global one, and no ``resolve:`` entry allows it."""


def is_global(address: str) -> bool:
    """Whether ``address`` is a unicast address of the public internet, as are any IPv4 addresses hidden inside it.

    Raises:
        ValueError: not an IP address at all.
    """
    ip = ipaddress.ip_address(address)
    if not ip.is_global or ip.is_multicast:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    hidden = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        hidden.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(inner.is_global and not inner.is_multicast for inner in hidden if inner is not None)


def is_refused_literal(host: str) -> bool:
    """Whether ``host`` is an IP address, and one that may not be connected to."""
    try:
        return not is_global(host.strip("[]"))
    except ValueError:
        return False


def checked_resolver(fixed: dict[str, str], inner: Any = None) -> Any:
    """An aiohttp resolver: hosts in ``fixed`` as told (``address[:port]``), all others to global addresses only."""
    from aiohttp.abc import AbstractResolver
    from aiohttp.resolver import ThreadedResolver

    class Checked(AbstractResolver):
        """See :func:`checked_resolver`."""

        def __init__(self) -> None:
            self._inner = inner or ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
            if host.lower() in fixed:
                address, _, wanted = fixed[host.lower()].partition(":")
                return [
                    {"hostname": host, "host": address, "port": int(wanted or port), "family": socket.AF_INET,
                     "proto": 0, "flags": socket.AI_NUMERICHOST}
                ]  # fmt: skip
            found = await self._inner.resolve(host, port, family)
            usable = [entry for entry in found if not is_refused_literal(entry["host"])]
            if not usable:
                raise RefusedAddress(f"{host} resolves to no global address")
            return usable

        async def close(self) -> None:
            await self._inner.close()

    return Checked()
