"""Root disks as files: made once, grown, never half; which strategy a VM gets and keeps."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from banger.config.paths import resolve_paths
from banger.config.settings import Settings
from banger.disk import strategies
from banger.disk.dmsnapshot import DmSnapshot, ext4_bytes, free_name
from banger.disk.errors import DiskError
from banger.disk.strategies import RootDisks
from banger.errors import BangerError, ErrorCode
from banger.helper.inprocess import InProcessHelper
from banger.model.records import Image, VMHandles, VMRecord, VMRuntime, VMSpec
from banger.model.states import VMState
from banger.system import devicemapper, ext4, reflink
from banger.system.ext4 import E2fsprogs
from tests.capabilities import require

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VM = "ab" * 32
PROGRAMS = E2fsprogs()
MIB = 1 << 20


async def programs() -> E2fsprogs:
    return PROGRAMS


def disks(tmp_path: Path, root_disk: str = "guest-overlay") -> RootDisks:
    return RootDisks(Settings(root_disk=root_disk), vms_dir=str(tmp_path / "vms"), programs=programs)


def record(path: str, *, size: int) -> VMRecord:
    return VMRecord(
        id=VM,
        name="calm-otter",
        image_id="cd" * 32,
        state=VMState.CREATED,
        created_at=NOW,
        updated_at=NOW,
        last_touched_at=NOW,
        spec=VMSpec(system_overlay_size_bytes=size),
        runtime=VMRuntime(system_overlay_path=path, vm_dir=str(Path(path).parent)),
    )


def image(path: Path) -> Image:
    return Image(id="cd" * 32, name="i", created_at=NOW, updated_at=NOW, rootfs_path=str(path))


@pytest.mark.anyio
async def test_the_overlay_is_sparse_made_once_and_grows(tmp_path: Path) -> None:
    strategy = disks(tmp_path).for_new()
    path = tmp_path / strategy.file_name
    await strategy.ensure_overlay(record(str(path), size=256 * MIB), image(tmp_path / "none"))
    assert path.stat().st_size == 256 * MIB
    assert path.stat().st_blocks * 512 < MIB
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [strategy.file_name]
    before = path.stat().st_ino
    await strategy.ensure_overlay(record(str(path), size=512 * MIB), image(tmp_path / "none"))
    assert (path.stat().st_ino, path.stat().st_size, ext4_bytes(str(path))) == (before, 512 * MIB, 512 * MIB)
    await ext4.check(path, programs=PROGRAMS)
    await strategy.ensure_overlay(record(str(path), size=64 * MIB), image(tmp_path / "none"))
    assert path.stat().st_size == 512 * MIB  # never shrinks


@pytest.mark.anyio
async def test_a_making_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> E2fsprogs:
        return E2fsprogs(mke2fs="false")

    made = RootDisks(Settings(root_disk="guest-overlay"), vms_dir=str(tmp_path / "vms"), programs=broken)
    path = tmp_path / "overlay.ext4"
    with pytest.raises(BangerError):
        await made.for_new().ensure_overlay(record(str(path), size=64 * MIB), image(tmp_path / "none"))
    assert os.listdir(tmp_path) == []


@require("reflink")
@pytest.mark.anyio
async def test_a_reflink_is_the_image_grown(tmp_path: Path) -> None:
    source = tmp_path / "rootfs.ext4"
    await ext4.make(source, size_bytes=64 * MIB, programs=PROGRAMS)
    strategy = disks(tmp_path, "reflink").for_new()
    path = tmp_path / strategy.file_name
    await strategy.ensure_overlay(record(str(path), size=256 * MIB), image(source))
    assert path.stat().st_size == 256 * MIB
    await ext4.check(path, programs=PROGRAMS)


def test_which_strategy_a_new_vm_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for can, wanted, expected in (
        (True, "auto", "reflink"),
        (False, "auto", "guest-overlay"),
        (True, "reflink", "reflink"),
        (True, "guest-overlay", "guest-overlay"),
    ):
        monkeypatch.setattr(reflink, "can_reflink", lambda _folder, can=can: can)
        assert disks(tmp_path, wanted).for_new().name == expected
    monkeypatch.setattr(reflink, "can_reflink", lambda _folder: False)
    with pytest.raises(DiskError) as caught:
        disks(tmp_path, "reflink").for_new()
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    monkeypatch.setattr(devicemapper, "unsuitable", lambda: "no device-mapper")
    with pytest.raises(DiskError, match="no device-mapper") as caught:
        disks(tmp_path, "dm-snapshot").for_new()
    assert caught.value.hint


def test_a_vm_keeps_the_strategy_it_was_made_with(tmp_path: Path) -> None:
    made = disks(tmp_path)
    for name, expected in (("overlay.ext4", "guest-overlay"), ("root.ext4", "reflink")):
        assert made.of(record(f"/x/{name}", size=0)).name == expected
    with pytest.raises(DiskError):
        made.of(record("/x/other", size=0))
    drives = made.of(record("/x/overlay.ext4", size=0)).drives(
        record("/x/overlay.ext4", size=0), image(tmp_path / "rootfs"), handles=VMHandles()
    )
    assert [(d.path, d.read_only) for d in drives] == [(f"{tmp_path}/rootfs", True), ("overlay.ext4", False)]


@pytest.mark.anyio
async def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await disks(tmp_path).check_space()
    monkeypatch.setattr(strategies, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(DiskError) as caught:
        await disks(tmp_path).check_space()
    assert caught.value.code is ErrorCode.NO_SPACE


def test_dm_names_avoid_what_is_taken() -> None:
    def target(name: str, uuid: str) -> devicemapper.Target:
        return devicemapper.Target(name=name, uuid=uuid, device="/dev/dm-0")

    assert free_name(VM, "U", targets=list) == "fc-rootfs-abababab"
    assert free_name(VM, "U", targets=lambda: [target("fc-rootfs-abababab", "U")]) == "fc-rootfs-abababab"
    assert free_name(VM, "U", targets=lambda: [target("fc-rootfs-abababab", "V")]) == "fc-rootfs-abababababab"
    with pytest.raises(BangerError):
        free_name(VM, "U", targets=lambda: [target(f"fc-rootfs-{VM[:n]}", "V") for n in (8, 12, 16)])


def test_the_size_of_what_is_no_ext4(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4096))
    with pytest.raises(DiskError, match="no ext4"):
        ext4_bytes(str(tmp_path / "x"))


@pytest.mark.anyio
async def test_a_store_that_was_never_grown_whole_is_made_anew(tmp_path: Path) -> None:
    """The daemon died in the first resize2fs; a store that a guest has used stays."""
    rootfs = tmp_path / "rootfs.ext4"
    rootfs.write_bytes(bytes(4096))
    helper = InProcessHelper("0" * 16, resolve_paths({"BANGER_HOME": str(tmp_path)}))
    strategy = DmSnapshot(programs, helper, instance="0" * 16)
    path = tmp_path / "root.cow"
    vm = record(str(path), size=64 * MIB)
    await strategy.ensure_overlay(vm, image(rootfs))
    marker = tmp_path / "root.cow.fresh"
    assert marker.exists()
    assert path.stat().st_size == devicemapper.cow_bytes(64 * MIB)
    assert path.stat().st_blocks == 0

    path.write_bytes(b"half a resize2fs")
    await strategy.ensure_overlay(vm, image(rootfs))
    assert path.read_bytes()[:4] == bytes(4)

    marker.unlink()
    with path.open("r+b") as file:
        file.write(b"a guest's")
    await strategy.ensure_overlay(record(str(path), size=128 * MIB), image(rootfs))
    assert path.read_bytes()[:9] == b"a guest's"
    assert path.stat().st_size == devicemapper.cow_bytes(128 * MIB)
    assert not marker.exists()
