"""Guests' addresses: pure arithmetic over the bridge's network."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from banger.errors import ErrorCode
from banger.network.errors import NetworkError

MAC_PREFIX = "06:00"
"""Locally administered, unicast; the four octets of the IPv4 address follow."""


def bridge_network(bridge_ip: str, prefix: int) -> ipaddress.IPv4Network:
    """The network that the bridge's address lies in. ValueError when either is none."""
    return ipaddress.IPv4Network(f"{bridge_ip}/{prefix}", strict=False)


def address_number(address: str) -> int:
    """172.16.0.2 → 0xac100002. For addresses that are known to be ones: far faster than ipaddress."""
    return int.from_bytes(socket.inet_aton(address))


def lowest_free(bridge_ip: str, prefix: int, *, used: Collection[str]) -> str:
    """The lowest host address that is neither the bridge's nor in `used`; NO_ADDRESS when there is none."""
    network = bridge_network(bridge_ip, prefix)
    taken = {address_number(address) for address in used if address}
    taken.add(address_number(bridge_ip))
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    candidate = first
    while candidate in taken:
        candidate += 1
    if candidate > last:
        raise NetworkError(
            f"all {last - first} guest addresses of {network} are taken",
            code=ErrorCode.NO_ADDRESS,
            hint="delete a VM (banger vm prune), or set a smaller cidr in config.toml",
        )
    return str(ipaddress.IPv4Address(candidate))


def mac_of(address: str) -> str:
    """172.16.0.2 → 06:00:ac:10:00:02."""
    return f"{MAC_PREFIX}:{socket.inet_aton(address).hex(':')}"
