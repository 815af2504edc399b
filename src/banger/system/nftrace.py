"""The kernel's trace of packets through nftables, by netlink (NFNLGRP_NFTRACE). Called by helper/ only.

`nft monitor trace` shows the same, but only as text, and nobody is told when it begins to listen; a socket
that is bound hears every verdict from then on, of iptables-nft's tables too. Which packets are traced is for
a rule to say (`meta nftrace set 1`). Layouts: <linux/netfilter/nf_tables.h>, NFTA_TRACE_*. A socket is all
there is; nothing is left after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from banger.model.netwhy import TraceEvent
from banger.system.errors import CommandError
from banger.system.netlink import attributes
from banger.system.run import run

_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_TRACE = 12, 270, 1, 9
_MESSAGE_TRACE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _IIF, _OIF, _POLICY = 8, 9, 10, 12, 16
_TYPE_POLICY = 1
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_VERDICTS = {
    0: "drop",
    1: "accept",
    2: "drop",  # stolen: whoever took it lets nobody have it
    3: "queue",
    -1: "continue",
    -2: "break",
    -3: "jump",
    -4: "goto",
    -5: "return",
}
_ICMP, _TCP, _UDP = 1, 6, 17
_ECHOES = (0, 8)
_BUFFER, _SO_RCVBUFFORCE = 4 << 20, 33
_MOST_EVENTS = 4000
_RECEIVE = 1 << 16
_LIST_TIMEOUT_S = 5.0
_NAME = re.compile(r"[A-Za-z_][\w./-]{0,255}")
_CHAIN_LINE = re.compile(r"\tchain (\S+) \{")
_RULE_LINE = re.compile(r"\t\t(.*\S) +# handle (\d+)")
_COUNTER = re.compile(r"\s*\bcounter packets \d+ bytes \d+")
_MOST_TEXT = 300


class Tracer:
    """Hears from its making on. Its socket is bound to the caller's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_NETFILTER,
        )
        try:
            self._socket.bind((0, 0))
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_TRACE)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> list[TraceEvent]:
        """All that has been said until now, in its order, and once; links by name, rules without text."""
        reader = _Reader()
        while len(reader.events) < _MOST_EVENTS:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # more than fits: what is left of it is told
                raise
            for family, message in _messages(data):
                reader.take(family, message)
        return reader.events


class _Reader:
    """The kernel shows a packet's headers once in each base chain; what follows is of the same packet."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []
        self._packets: dict[bytes, tuple[str, str, int, int, int]] = {}
        self._links: dict[bytes, tuple[str, str]] = {}

    def take(self, family: int, message: dict[int, bytes]) -> None:
        number = message.get(_ID, b"")
        if _NETWORK in message:
            self._packets[number] = _packet(message[_NETWORK], message.get(_TRANSPORT, b""))
            self._links[number] = (_link(message.get(_IIF, b"")), _link(message.get(_OIF, b"")))
        source, target, protocol, source_port, target_port = self._packets.get(number, ("", "", 0, 0, 0))
        iif, oif = self._links.get(number, ("", ""))
        self.events.append(
            TraceEvent(
                family=_FAMILIES.get(family, str(family)),
                table=_text(message.get(_TABLE, b"")),
                chain=_text(message.get(_CHAIN, b"")),
                verdict=_verdict(message),
                handle=int.from_bytes(message.get(_HANDLE, b"")[:8], "big"),
                source=source,
                target=target,
                protocol=protocol,
                source_port=source_port,
                target_port=target_port,
                packet=number.hex(),
                iif=iif,
                oif=oif,
            )
        )


def _messages(data: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """(family, attributes) of the traces in a datagram of netlink's."""
    at = 0
    while at + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 20 or at + length > len(data):
            return
        if kind == _MESSAGE_TRACE:
            yield data[at + 16], attributes(data[at + 20 : at + length])
        at += (length + 3) & ~3


def _verdict(message: dict[int, bytes]) -> str:
    if int.from_bytes(message.get(_TYPE, b"")[:4], "big") == _TYPE_POLICY:
        code = int.from_bytes(message.get(_POLICY, b"\0\0\0\1")[:4], "big")
    else:
        nested = attributes(message.get(_VERDICT, b"")).get(1, b"\xff\xff\xff\xff")
        code = int.from_bytes(nested[:4], "big", signed=True)
        code = code if code < 0 else code & 0xFF
    return _VERDICTS.get(code, str(code))


def _packet(network: bytes, transport: bytes) -> tuple[str, str, int, int, int]:
    """(source, target, protocol, its ports or an echo's id); of ARP who asks for whom, and protocol 0."""
    if len(network) >= 20 and network[0] >> 4 == 4:
        protocol = network[9]
        source, target = str(IPv4Address(network[12:16])), str(IPv4Address(network[16:20]))
        if protocol in (_TCP, _UDP) and len(transport) >= 4:
            return source, target, protocol, *struct.unpack_from("!HH", transport)
        if protocol == _ICMP and len(transport) >= 6 and transport[0] in _ECHOES:
            (number,) = struct.unpack_from("!H", transport, 4)
            return source, target, protocol, number, number
        return source, target, protocol, 0, 0
    if len(network) >= 28 and network[:2] == b"\0\1":
        return str(IPv4Address(network[14:18])), str(IPv4Address(network[24:28])), 0, 0, 0
    return "", "", 0, 0, 0


def _link(index: bytes) -> str:
    number = int.from_bytes(index[:4], "big")
    if not number:
        return ""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"link {number}"


def _text(data: bytes) -> str:
    return printable(data.rstrip(b"\0").decode("utf-8", "replace"))


def printable(text: str) -> str:
    """Names and comments are other programs': one line without control characters, bounded."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_MOST_TEXT])


async def rules_of(family: str, table: str) -> dict[tuple[str, int], str]:
    """A table's rules as `nft` writes them, by chain and handle; {} where it cannot be listed."""
    if not _NAME.fullmatch(table):
        return {}
    try:
        listed = await run(["nft", "-a", "-t", "list", "table", family, table], timeout_s=_LIST_TIMEOUT_S)
    except CommandError:
        return {}
    return read_rules(listed.stdout.decode("utf-8", "replace"))


def read_rules(listed: str) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    chain = ""
    for line in listed.split("\n"):
        if opened := _CHAIN_LINE.match(line):
            chain = opened[1]
        elif chain and (rule := _RULE_LINE.fullmatch(line)):
            found[chain, int(rule[2])] = printable(" ".join(_COUNTER.sub("", rule[1]).split()))
    return found
