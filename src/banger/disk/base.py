"""What a root disk strategy is, and what the strategies share.

Used by this room's strategies; callers see it through disk/strategies.py. Files are made under a
temporary name and renamed: a crash leaves none or a whole one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from banger.model.records import Image, VMHandles, VMRecord
from banger.system import ext4
from banger.system.ext4 import E2fsprogs
from banger.vmm.protocol import Drive

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

    async def usage(self, record: VMRecord) -> str:
        """What is wrong, or soon will be, with the running VM's disk; "" when nothing is."""
        return ""

    def drives(self, record: VMRecord, image: Image, *, handles: VMHandles) -> tuple[Drive, ...]:
        raise NotImplementedError

    def layout(self) -> Layout:
        raise NotImplementedError


async def grow_to(path: str, size_bytes: int, programs: E2fsprogs) -> None:
    if os.path.getsize(path) < size_bytes:
        await ext4.grow(path, size_bytes=size_bytes, programs=programs)


async def made(temporary: str, work: Awaitable[None]) -> None:
    """Await work; whatever goes wrong, the half-made file does not stay."""
    try:
        await work
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
