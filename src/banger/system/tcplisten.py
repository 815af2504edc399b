"""Listening TCP sockets, and who has one already (or a UDP socket, for the name server).

For published ports (vm/publishing). A socket of here is shared with the process that accepts from it, so
`shut` ends the listening for every holder at once. Nothing is left after a crash: the kernel closes sockets
with their last holder. `holder` reads /proc of this network namespace and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

BACKLOG = 128
_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_UNCONNECTED = "07"  # TCP_CLOSE, which is what the kernel says of a UDP socket that only has an address
_READ_LIMIT = 64 << 20


def listen(address: str, port: int) -> socket.socket:
    """Listening, non-blocking; port 0 is any free one. An IPv6 address is IPv6 only. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # a port whose last connections wait out their time is free (TIME_WAIT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def shut(listener: socket.socket) -> None:
    """Nobody is accepted any more, by whoever else has this socket either, and the port is free."""
    with listener, contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


def binds(address: str, port: int) -> bool:
    """Whether root could listen there, at an IPv4 address, by UDP and TCP both: a name server."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as trial:
            if kind == socket.SOCK_STREAM:
                # as the server does: connections that wait out their time are none
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address, port))
            except OSError as error:
                if error.errno != errno.EACCES:  # a port that only root may take
                    return False
    return True


def holder(address: str, port: int, *, udp: bool = False) -> str:
    """`nginx (pid 123)` of one who listens where `listen` could not; "" when it cannot be found. Blocking."""
    inodes: set[str] = set()
    for table in ("udp", "udp6") if udp else ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{table}", encoding="ascii") as file:
            state = _UNCONNECTED if udp else _LISTEN
            inodes |= parse_listening(file.read(_READ_LIMIT), address, port, state=state)
    if not inodes:
        return ""
    targets = {f"socket:[{inode}]" for inode in inodes}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _has(pid, targets):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file,
            ):
                name = "".join(letter if letter.isprintable() else "?" for letter in file.read(64).strip())
                return f"{name} (pid {pid})"
    return ""


def parse_listening(text: str, address: str, port: int, *, state: str = _LISTEN) -> set[str]:
    """Inodes of sockets of /proc/net/tcp or tcp6 that listen there, or on all addresses, or (where the
    address is all of them) on any. Other lines are passed over."""
    found: set[str] = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != state:
            continue
        local, _, local_port = fields[1].partition(":")
        try:
            if int(local_port, 16) != port:
                continue
            there = _address(local)
        except (ValueError, OSError):
            continue
        if address == there or there in ("0.0.0.0", "::") or address in ("0.0.0.0", "::"):
            found.add(fields[9])
    return found


def _address(digits: str) -> str:
    """The kernel prints each 32-bit word of an address as a number of its own byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def _has(pid: str, targets: set[str]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) in targets:
                        return True
    except OSError:
        pass  # gone, or another user's
    return False
