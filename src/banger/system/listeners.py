"""Whether a process listens on a Unix socket yet, without connecting to it.

For programs that serve one connection only, where a trial connection would be the one. Used by vmm/qemu.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_ACCEPTING = 0x10000  # __SO_ACCEPTCON in /proc/net/unix's flags


def listens_on(pid: int, name: str) -> bool:
    """name: as the process gave it to bind(). False too when the process is gone or not ours to see."""
    inodes = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # it may close any moment
            target = str(Path(f"/proc/{pid}/fd", descriptor).readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    if not inodes:
        return False
    with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            # Num RefCount Protocol Flags Type St Inode Path
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[6] in inodes and fields[7].rstrip("\n") == name:
                return bool(int(fields[3], 16) & _ACCEPTING)
    return False
