"""The few rtnetlink requests on a VM's start and stop path, by hand: reading links, removing one.

Used by system/links.py, which leaves everything else to pyroute2, and system/netpath.py. Reading a link so
takes some 30 µs against 600, and a thousand of them 10 ms against 250: the event loop can afford it. A socket
lives for one request, so that nothing is shared between threads. Layouts: rtnetlink(7), if_link.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY = 1, 2, 3, 4, 5
_RTN_LOCAL = 2
_ROUTE = struct.Struct("=8BI")
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SKIP_STATS = 8
"""RTEXT_FILTER_SKIP_STATS: half of a link's message is counters."""
_HEADER, _INFO = struct.Struct("=IHHII"), struct.Struct("=BxHiII")
_RECEIVE = 1 << 18
_TIMEOUT_S = 30.0
_TRIES = 8

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 10, 18, 20
IFLA_EXT_MASK, IFLA_CARRIER = 29, 33
IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_MULTI_BOOLOPT = 46
_IFLA_AF_SPEC, _IFLA_INET_CONF, _IPV4_DEVCONF_PROXY_ARP = 26, 1, 3
BR_NO_LL_LEARN = 1 << 0
"""<linux/if_bridge.h>, since 5.0."""

LinkMessage = tuple[int, int, dict[int, bytes]]
"""(index, flags, attributes)"""


def read_link(name: str) -> LinkMessage:
    """One link by name. OSError (ENODEV) when there is none."""
    encoded = name.encode() + b"\0"
    body = _INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, encoded) + _skip_stats()
    return next(_links(_ask(_RTM_GETLINK, 0, body)))


def read_links() -> list[LinkMessage]:
    """Every link of this namespace, as they were at one moment."""
    body = _INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _skip_stats()
    for _ in range(_TRIES):
        try:
            return list(_links(_ask(_RTM_GETLINK, _NLM_F_DUMP, body)))
        except InterruptedError:
            continue  # a link came or went while the kernel was telling: it says so, and is asked again
    raise OSError(11, "the links change faster than they can be listed")


def delete_link(index: int) -> None:
    """Blocks some 15 ms: the kernel waits out readers of the link. OSError (ENODEV) when it is gone."""
    _ask(_RTM_DELLINK, _NLM_F_ACK, _INFO.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def set_bridge_options(index: int, options: int, *, mask: int) -> None:
    """Yes-or-no options of a bridge, by BR_BOOLOPT_* bits. OSError where the kernel does not know them."""
    data = _attribute(_IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", options, mask))
    info = _attribute(IFLA_INFO_KIND, b"bridge") + _attribute(_IFLA_INFO_DATA, data)
    body = _INFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(IFLA_LINKINFO, info)
    _ask(_RTM_NEWLINK, _NLM_F_ACK, body)


def set_proxy_arp(index: int, on: bool) -> None:
    """net.ipv4.conf.LINK.proxy_arp, also where /proc/sys is read-only."""
    value = _attribute(_IPV4_DEVCONF_PROXY_ARP, struct.pack("=I", on))
    spec = _attribute(socket.AF_INET, _attribute(_IFLA_INET_CONF, value))
    body = _INFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(_IFLA_AF_SPEC, spec)
    _ask(_RTM_NEWLINK, _NLM_F_ACK, body)


def ask_route(target: bytes, source: bytes = b"", link: int = 0) -> tuple[int, bytes, bool]:
    """(outgoing link's index, gateway or b"", whether it is the host's own) of the way to an IPv4 address;
    with a link as for a packet that came in there. OSError where there is none, with the kernel's reason."""
    wanted = _attribute(_RTA_DST, target)
    wanted += _attribute(_RTA_SRC, source) if source else b""
    wanted += _attribute(_RTA_IIF, struct.pack("=I", link)) if link else b""
    body = _ROUTE.pack(socket.AF_INET, 32, 32 if source else 0, 0, 0, 0, 0, 0, 0) + wanted
    for kind, payload in _ask(_RTM_GETROUTE, 0, body):
        if kind == _RTM_NEWROUTE:
            found = attributes(payload[_ROUTE.size :])
            out = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
            return out, found.get(_RTA_GATEWAY, b""), payload[7] == _RTN_LOCAL
    raise OSError(5, "the kernel names no route")


def attributes(data: bytes) -> dict[int, bytes]:
    """Type to payload; the last one where a type repeats. A length that lies ends the walk."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _skip_stats() -> bytes:
    return _attribute(IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))


def _links(messages: list[tuple[int, bytes]]) -> Iterator[LinkMessage]:
    for kind, payload in messages:
        if kind == _RTM_NEWLINK:
            _, _, index, flags, _ = _INFO.unpack_from(payload)
            yield index, flags, attributes(payload[_INFO.size :])


def _ask(kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """Send one request; the (type, payload) of what is answered."""
    head = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0)
    found: list[tuple[int, bytes]] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.sendto(head + body, (0, 0))
        while True:
            data = sock.recv(_RECEIVE)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, answer, answer_flags, _, _ = _HEADER.unpack_from(data, offset)
                payload = data[offset + _HEADER.size : offset + length]
                if answer_flags & _NLM_F_DUMP_INTR:
                    raise InterruptedError
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", payload)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                if answer == _NLMSG_DONE:
                    return found
                found.append((answer, payload))
                offset += (length + 3) & ~3
            if not flags & (_NLM_F_DUMP | _NLM_F_ACK):
                return found
