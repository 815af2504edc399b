"""Where this host would send a packet, and the state of the links it might leave by. For `net why`.

Reads only, of the network namespace that the caller is in; nothing is kept.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address

from banger.model.netwhy import HostLink, HostRoute
from banger.system.links import Link, Links
from banger.system.netlink import ask_route

_VIRTUAL = frozenset({"bridge", "tun", "dummy", "ifb"})


async def host_links() -> tuple[HostLink, ...]:
    """Every link with its IPv4 addresses. Raises KernelError."""
    asking = Links()
    try:
        found = await asking.all()
        addresses: dict[int, list[str]] = {}
        for index, address in await asking.addresses():
            addresses.setdefault(index, []).append(str(address))
    finally:
        await asking.close()
    names = {link.index: link.name for link in found}
    return tuple(_host_link(link, names, tuple(addresses.get(link.index, ()))) for link in found)


def route_to(target: str, *, source: str = "", link: str = "") -> HostRoute:
    """The kernel's own answer; with source and link as for a packet that comes in there from elsewhere."""
    try:
        index = socket.if_nametoindex(link) if link else 0
        found = ask_route(IPv4Address(target).packed, IPv4Address(source).packed if source else b"", index)
    except OSError as error:
        return HostRoute(error=errno.errorcode.get(error.errno or 0, "EIO"))
    out, gateway, local = found
    return HostRoute(
        link=_name(out), gateway=str(IPv4Address(gateway)) if len(gateway) == 4 else "", local=local
    )


def _host_link(link: Link, names: dict[int, str], addresses: tuple[str, ...]) -> HostLink:
    return HostLink(
        name=link.name,
        up=link.up,
        carrier=link.carrier,
        master=names.get(link.master, ""),
        addresses=addresses,
        virtual=link.kind in _VIRTUAL or link.name == "lo",
    )


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
