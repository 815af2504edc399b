"""Who has a port of this host, from /proc/net and /proc/PID/fd (proc_pid_net(5), proc_pid_fd(5)).

For errors that say more than "address already in use". Looks in the network namespace of this process;
changes nothing. Other users' processes are seen by root only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from typing import NamedTuple

_TCP_LISTEN = "0A"
_READ_LIMIT = 64 << 20
_ANY = ipaddress.IPv4Address(0)


class Holder(NamedTuple):
    """name: what the process calls itself, at most 15 letters, escaped."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def bound_inodes(table: str, address: str, *, port: int, listening: bool) -> set[str]:
    """Of /proc/net/tcp, udp, tcp6 or udp6: the sockets that stand in the way of binding address:port.

    listening: of TCP's tables, only those that listen. Lines that are none are passed over.
    """
    wanted = ipaddress.IPv4Address(address)
    found: set[str] = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or (listening and fields[3] != _TCP_LISTEN):
            continue
        host, colon, number = fields[1].partition(":")
        try:
            if not colon or int(number, 16) != port:
                continue
            there = _address(host)
        except ValueError:
            continue
        if there in (wanted, _ANY) or wanted == _ANY:
            found.add(fields[9])
    return found


def port_holder(address: str, port: int) -> Holder | None:
    """A process with a UDP or listening TCP socket on address:port; None where none can be seen. Blocking."""
    inodes: set[str] = set()
    for name in ("udp", "udp6", "tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="ascii") as file:
            inodes |= bound_inodes(
                file.read(_READ_LIMIT), address, port=port, listening=name.startswith("tcp")
            )
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in os.listdir("/proc") if wanted else ():
        if entry.isdigit() and _holds(int(entry), wanted):
            return Holder(int(entry), _name(int(entry)))
    return None


def _address(text: str) -> ipaddress.IPv4Address | None:
    """As the kernel prints it, in words of the machine's byte order; None for an IPv6 one that is no IPv4."""
    packed = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    address = ipaddress.IPv6Address(packed)
    return _ANY if address.is_unspecified else address.ipv4_mapped


def _holds(pid: int, wanted: set[str]) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) in wanted:
                    return True
    return False


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read(64).strip()
    except OSError:
        return "a process that is gone"
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "a process"
