"""Where this host sends packets: IPv4 routes, the rules that choose a table of them, links and their MTU.

Reads only, of the network namespace that the caller is in; needs no root. One netlink socket, for one look.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Protocol, cast

import msgspec

from banger.system import netlink
from banger.system.netpath import route_to

_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTN_UNICAST = 1
_IFLA_MTU = 4
_IFF_UP = 0x1
_USUAL_RULES = frozenset({0, 32766, 32767})
PROBE = "203.0.113.1"
"""Nobody's address (TEST-NET-3): the way to it is the way to the internet."""


class RouteFact(msgspec.Struct, frozen=True, kw_only=True):
    """network: CIDR. link: "" for one with several ways. table: 254 is the main one."""

    network: str
    link: str = ""
    gateway: str = ""
    table: int = _RT_TABLE_MAIN
    metric: int = 0


class LinkFact(msgspec.Struct, frozen=True, kw_only=True):
    """kind: as the kernel calls it, "" for hardware. addresses: CIDR."""

    name: str
    kind: str = ""
    alias: str = ""
    mtu: int = 0
    up: bool = False
    addresses: tuple[str, ...] = ()


class RoutingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """rules: (preference, table) of those that are not on every host. uplink: the link by which a packet to
    the internet leaves as things are now, "" where there is no way."""

    links: tuple[LinkFact, ...] = ()
    routes: tuple[RouteFact, ...] = ()
    rules: tuple[tuple[int, int], ...] = ()
    uplink: str = ""

    def link(self, name: str) -> LinkFact | None:
        return next((link for link in self.links if link.name == name), None)


class _Message(Protocol):
    def get(self, key: str, default: object = None) -> object: ...


_Dump = Callable[..., Awaitable[AsyncIterable[_Message]]]


class _Socket(Protocol):
    addr: _Dump
    route: _Dump
    rule: _Dump

    def close(self) -> None: ...


async def routing_facts() -> RoutingFacts:
    """Raises OSError when the kernel does not say."""
    asking = _open()
    try:
        addresses: dict[int, list[str]] = {}
        for message in await _all(asking.addr):
            address = f"{message.get('local') or message.get('address')}/{_int(message.get('prefixlen'))}"
            addresses.setdefault(_int(message.get("index")), []).append(address)
        links = {index: (flags, known) for index, flags, known in netlink.read_links()}
        names = {index: _text(known.get(netlink.IFLA_IFNAME)) for index, (_, known) in links.items()}
        routes = [_route(message, names) for message in await _all(asking.route) if _leads_out(message)]
        rules = [(_int(rule.get("priority")), _int(rule.get("table"))) for rule in await _all(asking.rule)]
    finally:
        asking.close()
    return RoutingFacts(
        links=tuple(
            _link(names[index], flags, known, addresses.get(index, []))
            for index, (flags, known) in links.items()
        ),
        routes=tuple(routes),
        rules=tuple(rule for rule in rules if rule[0] not in _USUAL_RULES),
        uplink=route_to(PROBE).link,
    )


def _open() -> _Socket:
    from pyroute2 import AsyncIPRoute  # 100 ms to import: only who looks at routes pays

    return cast(_Socket, AsyncIPRoute())


async def _all(dump: _Dump) -> list[_Message]:
    try:
        return [message async for message in await dump("dump", family=socket.AF_INET)]
    except Exception as error:
        if type(error).__name__ == "NetlinkError":  # pyroute2's, which is no OSError
            raise OSError(str(error)) from error
        raise


def _leads_out(message: _Message) -> bool:
    return _int(message.get("table")) != _RT_TABLE_LOCAL and _int(message.get("type")) == _RTN_UNICAST


def _route(message: _Message, names: dict[int, str]) -> RouteFact:
    return RouteFact(
        network=f"{message.get('dst') or '0.0.0.0'}/{_int(message.get('dst_len'))}",
        link=names.get(_int(message.get("oif")), ""),
        gateway=str(message.get("gateway") or ""),
        table=_int(message.get("table")),
        metric=_int(message.get("priority")),
    )


def _link(name: str, flags: int, known: dict[int, bytes], addresses: list[str]) -> LinkFact:
    kind = netlink.attributes(known.get(netlink.IFLA_LINKINFO, b"")).get(netlink.IFLA_INFO_KIND)
    return LinkFact(
        name=name,
        kind=_text(kind),
        alias=_text(known.get(netlink.IFLA_IFALIAS)),
        mtu=int.from_bytes(known.get(_IFLA_MTU, b""), sys.byteorder),
        up=bool(flags & _IFF_UP),
        addresses=tuple(addresses),
    )


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode("utf-8", "replace")


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
