"""Bounding files that another process goes on writing to: logs and metrics of running machines.

Called by vm/ only, for files below a VM's folder. Which way is right depends on the writer: one that opened
the file with O_APPEND follows a truncation, one that did not would leave a hole up to its own offset; of
such a file the head's blocks are given back instead. A crash in between leaves a shorter log.
"""

from __future__ import annotations

import ctypes
import errno
import os

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02  # linux/falloc.h; ext4, xfs, btrfs, tmpfs, overlayfs
_BLOCK = 4096
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS)


def cut_head(path: str, *, limit_bytes: int, keep_bytes: int) -> bool:
    """Of a file over limit_bytes whose writer has O_APPEND keep the last keep_bytes, from a line's beginning.

    True when it was cut. What the writer adds in the instant between the last look and the cut is lost.
    No file is no error; raises OSError. Blocking.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _OPEN)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        if size <= limit_bytes:
            return False
        tail = bytearray(os.pread(descriptor, keep_bytes, size - keep_bytes))
        del tail[: tail.find(b"\n") + 1]
        position = size
        while len(tail) < 2 * keep_bytes and (more := os.pread(descriptor, keep_bytes, position)):
            tail += more
            position += len(more)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, tail)
        return True
    finally:
        os.close(descriptor)


def punch_head(path: str, *, limit_bytes: int, keep_bytes: int) -> bool:
    """Give back the blocks of all but the last keep_bytes, when the file takes more than limit_bytes on disk.

    The file's size stays, for its writer goes on at its own offset; the head reads as zeros. False when there
    is nothing to do, or the file system cannot. Raises OSError. Blocking.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | _OPEN)
    except FileNotFoundError:
        return False
    try:
        status = os.fstat(descriptor)
        end = (status.st_size - keep_bytes) // _BLOCK * _BLOCK
        if status.st_blocks * 512 <= limit_bytes or end <= 0:
            return False
        return _punch(descriptor, end)
    finally:
        os.close(descriptor)


def _punch(descriptor: int, end: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    if libc.fallocate(descriptor, mode, ctypes.c_int64(0), ctypes.c_int64(end)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number))
