"""Root disks: how a VM gets a writable `/` over an image that nobody writes to (SPEC §2, step 9).

guest-overlay: the image read-only and an empty ext4, put together by the guest's initramfs. Needs nothing.
reflink: a copy of the image that shares its blocks, where the file system can.
dm-snapshot: device-mapper, where the host has it (disk/dmsnapshot.py).
A VM keeps the strategy it was made with: its overlay's file name says which. Owns VM_DIR/overlay.ext4
and VM_DIR/root.ext4; both are made under a temporary name and renamed: a crash leaves
none or a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

from banger.config.settings import Settings
from banger.disk.base import Layout, Programs, RootDisk, grow_to, made
from banger.disk.dmsnapshot import DmSnapshot
from banger.disk.errors import DiskError
from banger.errors import ErrorCode
from banger.helper.interface import Helper
from banger.model.records import Image, VMHandles, VMRecord
from banger.system import devicemapper, ext4, reflink
from banger.vmm.protocol import Drive

OVERLAY_FILE = "overlay.ext4"
ROOT_FILE = "root.ext4"
RESERVE_BYTES = 1 << 30
"""Free space below which nothing new is made (SPEC §1)."""


class GuestOverlay(RootDisk):
    name = "guest-overlay"
    file_name = OVERLAY_FILE

    async def ensure_overlay(self, record: VMRecord, image: Image) -> None:
        path, size = record.runtime.system_overlay_path, record.spec.system_overlay_size_bytes
        programs = await self._programs()
        if os.path.exists(path):
            await grow_to(path, size, programs)
            return
        temporary = f"{path}.tmp"
        await made(
            temporary, ext4.make(temporary, size_bytes=size, programs=programs, label="banger-overlay")
        )
        os.replace(temporary, path)

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        return (
            Drive(drive_id="rootfs", path=image.rootfs_path, read_only=True),
            Drive(drive_id="overlay", path=OVERLAY_FILE),
        )

    def layout(self) -> Layout:
        return Layout(root_mode="overlay", overlay_device="/dev/vdb", next_device="/dev/vdc")


class Reflink(RootDisk):
    name = "reflink"
    file_name = ROOT_FILE

    async def ensure_overlay(self, record: VMRecord, image: Image) -> None:
        path, size = record.runtime.system_overlay_path, record.spec.system_overlay_size_bytes
        programs = await self._programs()
        if os.path.exists(path):
            await grow_to(path, size, programs)
            return
        temporary = f"{path}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        await asyncio.to_thread(reflink.clone, image.rootfs_path, temporary)
        await made(temporary, grow_to(temporary, size, programs))
        os.replace(temporary, path)

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        return (Drive(drive_id="rootfs", path=ROOT_FILE),)

    def layout(self) -> Layout:
        return Layout(root_mode="direct", overlay_device="", next_device="/dev/vdb")


class RootDisks:
    """The strategies of this host: which one a new VM gets, and which one a VM has."""

    def __init__(
        self,
        settings: Settings,
        *,
        vms_dir: str,
        programs: Programs,
        helper: Helper | None = None,
        instance: str = "",
    ) -> None:
        """helper and instance are for dm-snapshot; without them there is none."""
        self._settings = settings
        self._vms_dir = vms_dir
        self._strategies: tuple[RootDisk, ...] = (GuestOverlay(programs), Reflink(programs))
        if helper is not None:
            self._strategies += (DmSnapshot(programs, helper, instance=instance),)
        self._can_reflink: bool | None = None

    def for_new(self) -> RootDisk:
        """By config, else reflink where the file system can, else guest-overlay. Raises HOST_UNSUITABLE."""
        wanted = self._settings.root_disk
        if wanted == "dm-snapshot":
            why = devicemapper.unsuitable()
            if why:
                raise DiskError(
                    f"root_disk = dm-snapshot: {why}",
                    hint="modprobe dm_snapshot, or set root_disk to auto in config.toml",
                )
            return self._named("dm-snapshot")
        if wanted in ("auto", "reflink"):
            if self._can_reflink is None:
                os.makedirs(self._vms_dir, mode=0o700, exist_ok=True)
                self._can_reflink = reflink.can_reflink(self._vms_dir)
            if self._can_reflink:
                return self._named("reflink")
            if wanted == "reflink":
                raise DiskError(
                    f"the file system of {self._vms_dir} cannot reflink",
                    hint="set root_disk to auto, or put the state folder on btrfs or xfs",
                )
        return self._named("guest-overlay")

    def of(self, record: VMRecord) -> RootDisk:
        """The strategy that the VM was made with."""
        name = os.path.basename(record.runtime.system_overlay_path)
        for strategy in self._strategies:
            if strategy.file_name == name:
                return strategy
        raise DiskError(f"VM {record.name}: no root disk strategy keeps its overlay in {name!r}")

    def overlay_path(self, vm_dir: str) -> str:
        """Where a new VM's writable file will be."""
        return f"{vm_dir}/{self.for_new().file_name}"

    async def check_space(self) -> None:
        """Refuse when less than 1 GiB is free where the VMs' disks are."""
        os.makedirs(self._vms_dir, mode=0o700, exist_ok=True)
        free = (await asyncio.to_thread(shutil.disk_usage, self._vms_dir)).free
        if free < RESERVE_BYTES:
            raise DiskError(
                f"only {free >> 20} MiB are free below {self._vms_dir}; a VM needs at least 1 GiB",
                code=ErrorCode.NO_SPACE,
                hint="free some space, or: banger vm prune",
            )

    def _named(self, name: str) -> RootDisk:
        return next(strategy for strategy in self._strategies if strategy.name == name)
