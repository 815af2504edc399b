"""Root disks: how a VM gets a writable `/` over an image that nobody writes to (SPEC §2, step 9).

guest-overlay: the image read-only and an empty ext4, put together by the guest's initramfs. Needs nothing.
reflink: a copy of the image that shares its blocks, where the file system can.
A VM keeps the strategy it was made with: its overlay's file name says which. Owns VM_DIR/overlay.ext4
and VM_DIR/root.ext4; both are made under a temporary name and renamed: a crash leaves
none or a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from banger.config.settings import Settings
from banger.disk.errors import DiskError
from banger.errors import ErrorCode
from banger.model.records import Image, VMHandles, VMRecord
from banger.system import ext4, reflink
from banger.system.ext4 import E2fsprogs
from banger.vmm.protocol import Drive

OVERLAY_FILE = "overlay.ext4"
ROOT_FILE = "root.ext4"
RESERVE_BYTES = 1 << 30
"""Free space below which nothing new is made (SPEC §1)."""

Programs = Callable[[], Awaitable[E2fsprogs]]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How the guest sees the disks. root_mode: `overlay` or `direct`. Devices: "" for none."""

    root_mode: str
    overlay_device: str
    next_device: str  # the first disk behind the root's


class RecordHandles(Protocol):
    """vm.subject.Subject.record_handles: names go on record before the object is made."""

    async def __call__(
        self,
        *,
        tap_device: str | None = None,
        base_loop: str | None = None,
        cow_loop: str | None = None,
        dm_name: str | None = None,
        dm_dev: str | None = None,
    ) -> None: ...


class RootDisk:
    """Base of the strategies; what most of them do not need does nothing."""

    name = ""
    file_name = ""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    async def ensure_overlay(self, record: VMRecord, image: Image) -> None:
        """The writable file, made once; grown when the spec says more than it has."""
        raise NotImplementedError

    async def attach(self, record: VMRecord, image: Image, *, record_handles: RecordHandles) -> None:
        """What has to be attached on the host for each run."""

    async def detach(self, record: VMRecord, handles: VMHandles, *, record_handles: RecordHandles) -> None:
        """Idempotent; raises when something stays attached."""

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        raise NotImplementedError

    def layout(self) -> Layout:
        raise NotImplementedError


class GuestOverlay(RootDisk):
    name = "guest-overlay"
    file_name = OVERLAY_FILE

    async def ensure_overlay(self, record: VMRecord, image: Image) -> None:
        path, size = record.runtime.system_overlay_path, record.spec.system_overlay_size_bytes
        programs = await self._programs()
        if os.path.exists(path):
            await _grow_to(path, size, programs)
            return
        temporary = f"{path}.tmp"
        await _made(
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
            await _grow_to(path, size, programs)
            return
        temporary = f"{path}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        await asyncio.to_thread(reflink.clone, image.rootfs_path, temporary)
        await _made(temporary, _grow_to(temporary, size, programs))
        os.replace(temporary, path)

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        return (Drive(drive_id="rootfs", path=ROOT_FILE),)

    def layout(self) -> Layout:
        return Layout(root_mode="direct", overlay_device="", next_device="/dev/vdb")


class RootDisks:
    """The strategies of this host: which one a new VM gets, and which one a VM has."""

    def __init__(self, settings: Settings, *, vms_dir: str, programs: Programs) -> None:
        self._settings = settings
        self._vms_dir = vms_dir
        self._strategies: tuple[RootDisk, ...] = (GuestOverlay(programs), Reflink(programs))
        self._can_reflink: bool | None = None

    def for_new(self) -> RootDisk:
        """By config, else reflink where the file system can, else guest-overlay. Raises HOST_UNSUITABLE."""
        wanted = self._settings.root_disk
        if wanted == "dm-snapshot":
            raise DiskError(
                "root_disk = dm-snapshot is not in this version yet",
                hint="set root_disk to auto, reflink or guest-overlay in config.toml",
            )
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


async def _grow_to(path: str, size_bytes: int, programs: E2fsprogs) -> None:
    if os.path.getsize(path) < size_bytes:
        await ext4.grow(path, size_bytes=size_bytes, programs=programs)


async def _made(temporary: str, work: Awaitable[None]) -> None:
    """Await work; whatever goes wrong, the half-made file does not stay."""
    try:
        await work
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
