"""Loop devices by the kernel's own ioctls: finding and attaching are one step, so that no race is between.

Called by helper/ only. Attached without autoclear: a loop stays until it is detached, and is found by
its backing file. Sources: loop(4), include/uapi/linux/loop.h; LOOP_CONFIGURE is Linux 5.8.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import msgspec

from banger.errors import ErrorCode
from banger.system.errors import KernelError

LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
_INFO64 = "QQQQQIIII64s64s32s2Q"
"""struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type, encrypt_key_size,
flags, file_name, crypt_name, encrypt_key, init."""
_TRIES = 16
"""Another process may take the free one between the two ioctls; then the next free one is asked for."""


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    backing_file: str
    deleted: bool


def list_loops() -> list[Loop]:
    """Every attached loop device."""
    found: list[Loop] = []
    for entry in Path("/sys/block").glob("loop*"):
        try:
            backing = (entry / "loop/backing_file").read_text("utf-8", "surrogateescape").rstrip("\n")
        except OSError:
            continue
        deleted = backing.endswith(" (deleted)")
        found.append(
            Loop(
                device=f"/dev/{entry.name}",
                backing_file=backing.removesuffix(" (deleted)") if deleted else backing,
                deleted=deleted,
            )
        )
    return found


def attach(backing_file: str, *, read_only: bool) -> str:
    """Attach a free loop device to the file; its path. Raises KernelError."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    try:
        backing = os.open(backing_file, mode | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(ErrorCode.HOST_UNSUITABLE, f"{backing_file}: {error.strerror}") from error
    try:
        for _ in range(_TRIES):
            device = _attach_free(backing, backing_file, mode=mode, read_only=read_only)
            if device:
                return device
    except OSError as error:
        raise KernelError(
            ErrorCode.HOST_UNSUITABLE, f"cannot attach a loop device to {backing_file}: {error.strerror}"
        ) from error
    finally:
        os.close(backing)
    raise KernelError(ErrorCode.BUSY, f"no loop device is free for {backing_file}")


def _attach_free(backing: int, backing_file: str, *, mode: int, read_only: bool) -> str:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    path = f"/dev/loop{number}"
    if not os.path.exists(path):  # no udev or devtmpfs made it
        os.mknod(path, 0o660 | 0o060000, os.makedev(7, number))
    device = os.open(path, mode | os.O_CLOEXEC)
    try:
        flags = LO_FLAGS_READ_ONLY if read_only else 0
        name = os.fsencode(backing_file)[:63]
        info = struct.pack(_INFO64, 0, 0, 0, 0, 0, number, 0, 0, flags, name, b"", b"", 0, 0)
        try:
            fcntl.ioctl(device, LOOP_CONFIGURE, struct.pack("II", backing, 0) + info + bytes(64))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return ""
            raise
    finally:
        os.close(device)
    return path


def detach(device: str, *, backing_file: str) -> None:
    """Detach if it is still backed by that file; anything else is left alone. Raises KernelError."""
    loop = next((loop for loop in list_loops() if loop.device == device), None)
    if loop is None or loop.backing_file != backing_file:
        return
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise KernelError(ErrorCode.BUSY, f"cannot detach {device}: {error.strerror}") from error
    finally:
        os.close(descriptor)
