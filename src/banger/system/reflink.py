"""Reflinks: a copy of a file that shares its blocks until one of them is written (btrfs, xfs, bcachefs).

Kernel interface FICLONE (ioctl_ficlone(2), Linux 4.5). Called by disk/. Leaves nothing but what it is asked
to make; the probe's two files have no name while it runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


def clone(source: str, target: str) -> None:
    """Make `target` (which must not exist) a reflink copy of `source`, mode 0600. Raises OSError."""
    with open(source, "rb") as original:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(descriptor, FICLONE, original.fileno())
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            raise
        finally:
            os.close(descriptor)


def can_reflink(folder: str) -> bool:
    """Whether files in this folder can be cloned: tried with one block. Raises OSError
    when it is not writable."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        source = os.open(folder, flags, 0o600)
    except OSError as error:
        if error.errno in _CANNOT:  # no O_TMPFILE: none of the file systems that can reflink
            return False
        raise
    try:
        target = os.open(folder, flags, 0o600)
        try:
            os.write(source, b"\0" * 4096)
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        else:
            return True
        finally:
            os.close(target)
    finally:
        os.close(source)
