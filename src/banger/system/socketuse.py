"""Who is connected to a process's Unix socket, from /proc/net/unix and /proc/PID/fd (proc_pid_net(5)).

Called by vm/ to see whether a guest's socket is in use; changes nothing. A connection that is not accepted
yet has no inode of the process's and is not counted.
"""

from __future__ import annotations

import os

CONNECTED = "03"  # SS_CONNECTED, include/uapi/linux/net.h
_READ_LIMIT = 64 << 20


def parse_connected(text: str, name: str) -> set[str]:
    """Inodes of connected sockets bound to a path whose last part is `name`; other lines are passed over."""
    inodes: set[str] = set()
    for line in text.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[5] == CONNECTED and os.path.basename(fields[7]) == name:
            inodes.add(fields[6])
    return inodes


def connections(pid: int, name: str) -> int:
    """How many connections the process has on its Unix socket `name`; 0 when it is gone. Blocking."""
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            inodes = parse_connected(file.read(_READ_LIMIT), name)
        if not inodes:
            return 0
        with os.scandir(f"/proc/{pid}/fd") as entries:
            held = [_target(entry.path) for entry in entries]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(1 for target in held if target[8:-1] in inodes and target.startswith("socket:["))


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
