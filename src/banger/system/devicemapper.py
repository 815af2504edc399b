"""Device-mapper snapshots through `dmsetup`: a writable device over a read-only one, and who owns which.

Called by helper/ only. A target carries its owner's mark as its uuid and is acted on by that, never by
name alone. Listing reads /sys and needs no program. Runs with DM_DISABLE_UDEV=1: the nodes are made by
dmsetup itself, whether a udev runs or not. What was made stays after a crash and is found by its uuid.
Sources: Documentation/admin-guide/device-mapper/{snapshot,linear,zero}.rst, dmsetup(8).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from pathlib import Path

import msgspec

from banger.errors import ErrorCode
from banger.system.errors import CommandError, KernelError
from banger.system.run import run

_ENV = {"DM_DISABLE_UDEV": "1"}
_TIMEOUT_S = 30.0
_REMOVE_AT_MOST_S = 20.0
"""How long a target that is in use is tried again: whoever scans new block devices holds it for a moment."""
_RETRY_PAUSE_S = 0.05
_BLKGETSIZE64 = 0x80081272
SECTOR = 512
CHUNK_SECTORS = 8
"""4 KiB: the file system's own block, so that a block written copies no more than itself."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uuid: str
    device: str  # /dev/dm-N


class SnapshotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the copy-on-write store. broken: "" while it works, else what the kernel calls it."""

    used: int
    total: int
    broken: str = ""


def unsuitable() -> str:
    """Why this host has no device-mapper; "" when it has. (The snapshot module is loaded at first use.)"""
    if os.path.exists("/dev/mapper/control"):
        return ""
    return "/dev/mapper/control is missing: is the dm_mod module loaded?"


def list_targets() -> list[Target]:
    """Every device-mapper device. Blocking."""
    found: list[Target] = []
    for entry in sorted(Path("/sys/block").glob("dm-*")):
        try:
            name = (entry / "dm/name").read_text().rstrip("\n")
            uuid = (entry / "dm/uuid").read_text().rstrip("\n")
        except OSError:
            continue  # it went away meanwhile
        found.append(Target(name=name, uuid=uuid, device=f"/dev/{entry.name}"))
    return found


def find(uuid: str) -> Target | None:
    return next((target for target in list_targets() if target.uuid == uuid), None)


def device_size(device: str) -> int:
    """Bytes of a block device."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (size,) = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))
    finally:
        os.close(descriptor)
    return int(size)


def base_table(base: str, *, base_bytes: int, size_bytes: int) -> str:
    """The origin of a snapshot that is larger than its image: the image, and zeros behind it."""
    image, whole = base_bytes // SECTOR, size_bytes // SECTOR
    lines = [f"0 {image} linear {base} 0"]
    if whole > image:
        lines.append(f"{image} {whole - image} zero")
    return "\n".join(lines) + "\n"


def snapshot_table(origin: str, cow: str, *, size_bytes: int) -> str:
    """P: what was written is there again when the target is made anew over the same store."""
    return f"0 {size_bytes // SECTOR} snapshot {origin} {cow} P {CHUNK_SECTORS}\n"


def cow_bytes(size_bytes: int) -> int:
    """A store that holds every block of the device, so that it can never overflow: 16 bytes of exception
    table for each chunk, in chunks of their own, a header, and some to spare."""
    chunks = size_bytes // (CHUNK_SECTORS * SECTOR) + 1
    return size_bytes + chunks * 16 + (1 << 20)


def parse_status(line: str) -> SnapshotStatus:
    """A line of `dmsetup status`: `0 16384 snapshot 16/32768 16`, or a word for what is wrong."""
    fields = line.split()
    if len(fields) < 4 or fields[2] != "snapshot":
        raise ValueError(f"not the status of a snapshot: {line!a}")
    used, slash, total = fields[3].partition("/")
    if not slash or not (used.isascii() and used.isdigit() and total.isascii() and total.isdigit()):
        return SnapshotStatus(used=0, total=0, broken=" ".join(fields[3:]).lower())
    return SnapshotStatus(used=int(used) * SECTOR, total=int(total) * SECTOR)


async def create(name: str, *, uuid: str, table: str, read_only: bool = False) -> Target:
    """Make a target. One with this uuid that is there already is as it was. Raises KernelError."""
    there = await asyncio.to_thread(find, uuid)
    if there is not None:
        return there
    if why := unsuitable():
        raise KernelError(
            ErrorCode.HOST_UNSUITABLE,
            f"this host has no device-mapper: {why}",
            hint="modprobe dm_snapshot, or set root_disk to auto in config.toml",
        )
    argv = ["dmsetup", "create", name, "--uuid", uuid, *(["--readonly"] if read_only else [])]
    await run(argv, timeout_s=_TIMEOUT_S, env=_ENV, input=table.encode("ascii"))
    made = await asyncio.to_thread(find, uuid)
    if made is None:
        raise KernelError(ErrorCode.HOST_UNSUITABLE, f"the device-mapper target {name} went away again")
    return made


async def remove(uuid: str) -> None:
    """Remove a target by its uuid, tried again while it is busy. One that is not there is no error."""
    deadline = asyncio.get_running_loop().time() + _REMOVE_AT_MOST_S
    while (target := await asyncio.to_thread(find, uuid)) is not None:
        try:
            await run(["dmsetup", "remove", "--uuid", uuid], timeout_s=_TIMEOUT_S, env=_ENV)
        except CommandError as error:
            if "busy" not in error.stderr.lower():
                if await asyncio.to_thread(find, uuid) is None:
                    return
                raise
            if asyncio.get_running_loop().time() > deadline:
                raise KernelError(
                    ErrorCode.CLEANUP_FAILED,
                    f"the device-mapper target {target.name} is still in use",
                    hint=f"see who holds {target.device}: lsof {target.device}",
                ) from error
            await asyncio.sleep(_RETRY_PAUSE_S)  # the kernel tells nobody when the last user is gone


async def status(uuid: str) -> SnapshotStatus | None:
    """How full a snapshot's store is; None when there is no such target."""
    if await asyncio.to_thread(find, uuid) is None:
        return None
    done = await run(["dmsetup", "status", "--uuid", uuid], timeout_s=_TIMEOUT_S, env=_ENV)
    return parse_status(done.stdout.decode("utf-8", "replace"))
