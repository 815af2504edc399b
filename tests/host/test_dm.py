"""dm-snapshot root disks on a real device-mapper (the lab host, or a developer's own machine)."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.disk.dmsnapshot import DmSnapshot, ext4_bytes
from banger.disk.strategies import RootDisks
from banger.helper import marks
from banger.helper.inprocess import InProcessHelper
from banger.model.records import Image, VMHandles, VMRecord, VMRuntime, VMSpec
from banger.model.states import VMState
from banger.system import devicemapper, ext4, loops
from banger.system.ext4 import E2fsprogs
from tests.capabilities import require

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("device-mapper", "loop", "netns")]

VM = "ab" * 32
MIB = 1 << 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Handles:
    """What the lifecycle records, with every step it took."""

    def __init__(self) -> None:
        self.current = VMHandles()

    async def __call__(
        self,
        *,
        tap_device: str | None = None,
        base_loop: str | None = None,
        cow_loop: str | None = None,
        dm_name: str | None = None,
        dm_dev: str | None = None,
    ) -> None:
        old = self.current
        self.current = VMHandles(
            base_loop=old.base_loop if base_loop is None else base_loop,
            cow_loop=old.cow_loop if cow_loop is None else cow_loop,
            dm_name=old.dm_name if dm_name is None else dm_name,
            dm_dev=old.dm_dev if dm_dev is None else dm_dev,
        )


async def programs() -> E2fsprogs:
    return E2fsprogs()


@pytest.fixture
async def image(paths: Paths) -> Image:
    rootfs = f"{paths.images_dir}/rootfs.ext4"
    await ext4.make(rootfs, size_bytes=64 * MIB, programs=E2fsprogs())
    return Image(id="cd" * 32, name="i", created_at=NOW, updated_at=NOW, rootfs_path=rootfs)


@pytest.fixture
async def disk(
    helper: InProcessHelper, paths: Paths, instance: str
) -> AsyncIterator[tuple[DmSnapshot, VMRecord, Handles]]:
    disks = RootDisks(
        Settings(root_disk="dm-snapshot"),
        vms_dir=paths.vms_dir,
        programs=programs,
        helper=helper,
        instance=instance,
    )
    strategy = disks.for_new()
    assert isinstance(strategy, DmSnapshot)
    folder = Path(paths.vm_dir(VM))
    folder.mkdir()
    record = VMRecord(
        id=VM,
        name="calm-otter",
        image_id="cd" * 32,
        state=VMState.CREATED,
        created_at=NOW,
        updated_at=NOW,
        last_touched_at=NOW,
        spec=VMSpec(system_overlay_size_bytes=256 * MIB),
        runtime=VMRuntime(system_overlay_path=disks.overlay_path(str(folder)), vm_dir=str(folder)),
    )
    handles = Handles()
    yield strategy, record, handles
    await strategy.detach(record, VMHandles(), record_handles=handles)
    shutil.rmtree(folder)


async def test_it_is_as_large_as_the_spec_and_keeps_what_was_written(
    disk: tuple[DmSnapshot, VMRecord, Handles],
    image: Image,
    helper: InProcessHelper,
    paths: Paths,
    instance: str,
) -> None:
    strategy, record, handles = disk
    before = Path(image.rootfs_path).read_bytes()
    await strategy.ensure_overlay(record, image)
    await strategy.attach(record, image, record_handles=handles)
    device = handles.current.dm_dev
    assert devicemapper.device_size(device) == 256 * MIB
    assert ext4_bytes(device) >= 248 * MIB
    (seen,) = (await helper.observe(vms_dir=paths.vms_dir)).dms
    assert (seen.name, seen.uuid, seen.device) == (
        handles.current.dm_name,
        marks.dm_uuid(instance, VM),
        device,
    )
    with open(device, "r+b", buffering=0) as block:
        block.seek(200 * MIB)
        block.write(b"kept" * 1024)
        os.fsync(block.fileno())
    assert await strategy.usage(record) == ""
    status = await devicemapper.status(marks.dm_uuid(instance, VM))
    assert status is not None
    assert 0 < status.used < status.total
    for _ in range(2):
        await strategy.detach(record, handles.current, record_handles=handles)
    assert handles.current.is_empty()
    assert (await helper.observe(vms_dir=paths.vms_dir)).loops == ()
    await strategy.attach(record, image, record_handles=handles)
    with open(handles.current.dm_dev, "rb", buffering=0) as block:
        block.seek(200 * MIB)
        assert block.read(8) == b"keptkept"
    assert Path(image.rootfs_path).read_bytes() == before


async def test_it_is_found_and_removed_with_every_record_lost(
    disk: tuple[DmSnapshot, VMRecord, Handles], image: Image, instance: str
) -> None:
    strategy, record, handles = disk
    await strategy.ensure_overlay(record, image)
    await strategy.attach(record, image, record_handles=handles)
    await strategy.detach(record, VMHandles(), record_handles=handles)
    assert devicemapper.find(marks.dm_uuid(instance, VM)) is None
    assert devicemapper.find(marks.dm_uuid(instance, VM) + marks.BASE) is None
    label = marks.loop_label(instance, VM)
    assert [loop for loop in loops.list_loops() if loop.label == label] == []


async def test_an_attach_that_broke_off_is_cleaned(
    disk: tuple[DmSnapshot, VMRecord, Handles], image: Image, helper: InProcessHelper, instance: str
) -> None:
    """Only the base target was made when the daemon died."""
    strategy, record, handles = disk
    await strategy.ensure_overlay(record, image)
    loop = await helper.attach_loop(image.rootfs_path, read_only=True, vm_id=VM)
    uuid = marks.dm_uuid(instance, VM) + marks.BASE
    table = devicemapper.base_table(loop, base_bytes=64 * MIB, size_bytes=256 * MIB)
    await devicemapper.create("fc-rootfs-abababab-base", uuid=uuid, table=table, read_only=True)
    await strategy.detach(record, VMHandles(), record_handles=handles)
    assert devicemapper.find(uuid) is None


async def test_a_busy_target_is_tried_again(
    disk: tuple[DmSnapshot, VMRecord, Handles], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    strategy, record, handles = disk
    await strategy.ensure_overlay(record, image)
    await strategy.attach(record, image, record_handles=handles)
    descriptor = os.open(handles.current.dm_dev, os.O_RDONLY)
    asyncio.get_running_loop().call_later(0.5, os.close, descriptor)
    await strategy.detach(record, handles.current, record_handles=handles)
    assert handles.current.is_empty()
