"""Room on the host's disk while something large is written: who runs beside it must not find it full.

A running guest's disks are sparse files; once the host has no room, its writes fail. Used by whoever writes
what a guest sends or has. Only looks; another writer may still be quicker.
"""

from __future__ import annotations

import os

from banger.errors import BangerError, ErrorCode

KEEP_FREE_BYTES = 256 << 20
_LOOK = 64 << 20


class DiskRoom:
    """Of the file system that an open file or folder is on, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._used = _LOOK

    def use(self, count: int) -> None:
        """Before `count` bytes are written. NO_SPACE where too little would be left. Blocking, rarely."""
        self._used += count
        if self._used < _LOOK:
            return
        self._used = 0
        found = os.fstatvfs(self._descriptor)
        if found.f_bavail * found.f_frsize < KEEP_FREE_BYTES + count:
            raise BangerError(
                ErrorCode.NO_SPACE,
                "the host's disk is nearly full",
                hint="free some space, or set BANGER_HOME to a folder on a larger disk",
            )
