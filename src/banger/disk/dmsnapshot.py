"""dm-snapshot: the image below on a read-only loop, what is written in a sparse store of the VM's own.

Owns VM_DIR/root.cow (and root.cow.fresh) and, while the VM runs, two loops and the targets
`fc-rootfs-<short id>` and `…-base`. `/` is as large as the spec says: behind the image the base has
zeros, and the file system is grown into them, which the store takes. The store has room for every block,
so that it cannot overflow; what can run out is the disk below it (`usage`). After a crash the objects
stay: the targets are found by uuid, the loops by label.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable

from banger.disk.base import Layout, Programs, RecordHandles, RootDisk
from banger.disk.errors import DiskError
from banger.errors import BangerError, ErrorCode
from banger.helper import marks
from banger.helper.interface import Helper
from banger.model.ids import short_id
from banger.model.records import Image, VMHandles, VMRecord
from banger.system import devicemapper, loops
from banger.system.errors import CommandError
from banger.system.run import run
from banger.vmm.protocol import Drive

COW_FILE = "root.cow"
FRESH = ".fresh"
"""Behind the store's name: a file that is there until the file system has been grown for the first time."""
NAME_PREFIX = "fc-rootfs-"
_FSCK_TIMEOUT_S = 600.0
_MAGIC = 0xEF53
_ROUNDING = 8 << 20
"""resize2fs leaves out a last block group that has room for little more than its own tables."""


class DmSnapshot(RootDisk):
    name = "dm-snapshot"
    file_name = COW_FILE

    def __init__(self, programs: Programs, helper: Helper, *, instance: str) -> None:
        super().__init__(programs)
        self._helper = helper
        self._instance = instance

    async def ensure_overlay(self, record: VMRecord, image: Image) -> None:
        """The store: sparse, empty at first, longer when the spec has grown."""
        size = _size(record, image)
        await asyncio.to_thread(
            _ensure_store, record.runtime.system_overlay_path, devicemapper.cow_bytes(size)
        )

    async def attach(self, record: VMRecord, image: Image, *, record_handles: RecordHandles) -> None:
        helper, cow = self._helper, record.runtime.system_overlay_path
        base_loop = await helper.attach_loop(image.rootfs_path, read_only=True, vm_id=record.id)
        await record_handles(base_loop=base_loop)
        cow_loop = await helper.attach_loop(cow, read_only=False, vm_id=record.id)
        await record_handles(cow_loop=cow_loop)
        name = await asyncio.to_thread(free_name, record.id, self._uuid(record))
        await record_handles(dm_name=name)
        size = _size(record, image)
        device = await helper.create_snapshot_dm(
            name, uuid=self._uuid(record), base_loop=base_loop, cow_loop=cow_loop, size_bytes=size
        )
        await record_handles(dm_dev=device)
        status = await devicemapper.status(self._uuid(record))
        if status is not None and status.broken:
            raise DiskError(
                f"the root disk of {record.name} is lost ({status.broken}): its store {cow} could not be"
                " written when the disk below it was full",
                hint=f"the work disk is whole; what else there was: banger vm delete {record.name}",
            )
        await self._grow(device, size)
        await asyncio.to_thread(_no_longer_fresh, cow)

    async def detach(self, record: VMRecord, handles: VMHandles, *, record_handles: RecordHandles) -> None:
        """The targets by uuid, the loops by label and file: the handles are only hints for what to clear.
        Every part is tried; what fails is raised after that."""
        failures: list[Exception] = []
        uuid = self._uuid(record)
        target = await asyncio.to_thread(devicemapper.find, uuid)
        base = await asyncio.to_thread(devicemapper.find, uuid + marks.BASE)
        name = target.name if target else base.name.removesuffix(marks.BASE) if base else ""
        try:
            if name:
                await self._helper.remove_dm(name, uuid=uuid)
            await record_handles(dm_name="", dm_dev="")
        except Exception as error:
            failures.append(error)
        label = marks.loop_label(self._instance, record.id)
        for loop in await asyncio.to_thread(loops.list_loops):
            if loop.label != label:
                continue
            try:
                await self._helper.detach_loop(loop.device, backing_file=loop.backing_file)
            except Exception as error:
                failures.append(error)
        if len(failures) > 1:
            raise ExceptionGroup("the root disk", failures)
        if failures:
            raise failures[0]
        await record_handles(base_loop="", cow_loop="")

    async def usage(self, record: VMRecord) -> str:
        """What is wrong with the store, for the user; "" when nothing is. Cheap enough for the stats poll."""
        status = await devicemapper.status(self._uuid(record))
        if status is None:
            return ""
        if status.broken:
            return f"the root disk of {record.name} is lost ({status.broken}): the disk below it was full"
        cow = record.runtime.system_overlay_path
        place = await asyncio.to_thread(os.statvfs, cow)
        free = place.f_bavail * place.f_frsize
        if free < 64 << 20:
            return f"the root disk of {record.name} is about to break: less than 64 MiB are free for {cow}"
        return ""

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        if not handles.dm_dev:
            raise DiskError(f"the root disk of {record.name} is not attached", code=ErrorCode.INTERNAL)
        return (Drive(drive_id="rootfs", path=handles.dm_dev),)

    def layout(self) -> Layout:
        return Layout(root_mode="direct", overlay_device="", next_device="/dev/vdb")

    def _uuid(self, record: VMRecord) -> str:
        return marks.dm_uuid(self._instance, record.id)

    async def _grow(self, device: str, size_bytes: int) -> None:
        """Grow the file system to the device. A store that has been used before has it grown already."""
        if await asyncio.to_thread(ext4_bytes, device) >= size_bytes - _ROUNDING:
            return
        programs = await self._programs()
        checked = await run(
            [programs.e2fsck, "-fp", device], timeout_s=_FSCK_TIMEOUT_S, env=programs.env, check=False
        )
        if checked.status not in (0, 1):  # 1: errors were corrected
            raise CommandError(checked.argv, checked.status, stderr=checked.stdout + checked.stderr)
        await run([programs.resize2fs, device], timeout_s=_FSCK_TIMEOUT_S, env=programs.env)


def free_name(
    vm_id: str, uuid: str, *, targets: Callable[[], list[devicemapper.Target]] | None = None
) -> str:
    """`fc-rootfs-<first 8>`, longer where another target has that name. Blocking."""
    taken = {
        t.name for t in (targets or devicemapper.list_targets)() if t.uuid not in (uuid, uuid + marks.BASE)
    }
    for length in (len(short_id(vm_id)), 12, 16):
        name = f"{NAME_PREFIX}{vm_id[:length]}"
        if not taken & {name, name + marks.BASE}:
            return name
    raise BangerError(ErrorCode.ALREADY_EXISTS, f"device-mapper targets have all names for {short_id(vm_id)}")


def ext4_bytes(device: str) -> int:
    """The size of the ext4 on a device or file, from its superblock (Documentation/filesystems/ext4)."""
    with open(device, "rb") as file:
        file.seek(1024)
        block = file.read(1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise DiskError(f"{device} has no ext4 file system", code=ErrorCode.IMAGE_INVALID)
    low, log_size = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x18)[0]
    high = struct.unpack_from("<I", block, 0x150)[0] if struct.unpack_from("<I", block, 0x60)[0] & 0x80 else 0
    return int((high << 32 | low) << (10 + min(log_size, 6)))


def _size(record: VMRecord, image: Image) -> int:
    """Of `/`: what the spec says, but not less than the image; whole blocks."""
    size = max(record.spec.system_overlay_size_bytes, os.path.getsize(image.rootfs_path))
    return -(-size // 4096) * 4096


def _ensure_store(path: str, size_bytes: int) -> None:
    """A store whose first growing was not finished (FRESH is beside it) holds half a resize2fs and nothing
    of a guest's: it is made anew."""
    marker = path + FRESH
    if os.path.exists(marker):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    elif not os.path.exists(path):
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def _no_longer_fresh(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + FRESH)
