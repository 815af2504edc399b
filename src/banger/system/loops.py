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
LOOP_GET_STATUS64 = 0x4C05
MAX_LABEL = 63
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
_INFO64 = "QQQQQIIII64s64s32s2Q"
"""struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type, encrypt_key_size,
flags, file_name, crypt_name, encrypt_key, init."""
_TRIES = 16
"""Another process may take the free one between the two ioctls; then the next free one is asked for."""


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """label: the text its owner gave it (loop_info64.lo_file_name), where it may be read."""

    device: str
    backing_file: str
    deleted: bool
    label: str = ""


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
                label=_label(f"/dev/{entry.name}"),
            )
        )
    return found


def _label(device: str) -> str:
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        info = fcntl.ioctl(descriptor, LOOP_GET_STATUS64, bytes(struct.calcsize(_INFO64)))
    except OSError:
        return ""  # detached meanwhile
    finally:
        os.close(descriptor)
    name: bytes = struct.unpack(_INFO64, info)[9]
    return name.split(b"\0")[0].decode("utf-8", "replace")


def attach(backing_file: str, *, read_only: bool, label: str = "") -> str:
    """Attach a free loop device to the file; its path. label: its owner's mark, at most 63 bytes, which
    tells apart loops over one file. Raises KernelError."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    try:
        backing = os.open(backing_file, mode | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(ErrorCode.HOST_UNSUITABLE, f"{backing_file}: {error.strerror}") from error
    try:
        for _ in range(_TRIES):
            device = _attach_free(backing, label or backing_file, mode=mode, read_only=read_only)
            if device:
                return device
    except OSError as error:
        raise KernelError(
            ErrorCode.HOST_UNSUITABLE, f"cannot attach a loop device to {backing_file}: {error.strerror}"
        ) from error
    finally:
        os.close(backing)
    raise KernelError(ErrorCode.BUSY, f"no loop device is free for {backing_file}")


def _attach_free(backing: int, label: str, *, mode: int, read_only: bool) -> str:
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
        name = os.fsencode(label)[:MAX_LABEL]
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


def detach(device: str, *, backing_file: str, label: str | None = None) -> None:
    """Detach if it is still backed by that file (and has that label); anything else is left alone.

    Where somebody has it open the kernel detaches it at their close. Raises KernelError.
    """
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # there is no such device
    try:
        # opened first: while it is open it cannot become another file's
        loop = next((loop for loop in list_loops() if loop.device == device), None)
        if loop is None or loop.backing_file != backing_file or label not in (None, loop.label):
            return
        fcntl.ioctl(descriptor, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise KernelError(ErrorCode.BUSY, f"cannot detach {device}: {error.strerror}") from error
    finally:
        os.close(descriptor)
