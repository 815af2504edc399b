"""Loop devices on the real kernel: labelled, found again, detached only where they are what was meant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config.paths import Paths
from banger.errors import BangerError
from banger.helper.inprocess import InProcessHelper
from banger.system import loops
from tests import leaks
from tests.capabilities import require

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("loop")]

VM = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def backing(paths: Paths) -> Iterator[str]:
    file = Path(paths.images_dir) / "rootfs.ext4"
    file.write_bytes(b"x" * 4096 + bytes(1 << 20))
    yield str(file)
    for loop in loops.list_loops():
        if loop.backing_file == str(file):
            loops.detach(loop.device, backing_file=str(file))


def is_attached(device: str, backing: str) -> bool:
    """To that file: once it is free, another test may take the device."""
    leaks.wait_for_loops(Path(backing).parent)
    return (device, backing) in {(loop.device, loop.backing_file) for loop in loops.list_loops()}


async def test_a_loop_is_labelled_seen_and_detached_once(
    helper: InProcessHelper, paths: Paths, backing: str
) -> None:
    (Path(paths.vms_dir) / VM).mkdir()
    device = await helper.attach_loop(backing, read_only=True, vm_id=VM)
    second = await helper.attach_loop(backing, read_only=True, vm_id=OTHER)
    seen = {loop.device: loop for loop in (await helper.observe(vms_dir=paths.vms_dir)).loops}
    assert (seen[device].backing_file, seen[device].vm_id, seen[device].deleted) == (backing, VM, False)
    assert seen[second].vm_id == OTHER[:32]  # it has no folder
    with open(device, "rb") as block:
        assert block.read(4) == b"xxxx"
    with pytest.raises(PermissionError), open(device, "r+b", buffering=0) as block:
        block.write(bytes(4096))
    await helper.detach_loop(device, backing_file=f"{paths.images_dir}/another")
    loops.detach(device, backing_file=backing, label="somebody else's")
    assert is_attached(device, backing)
    for _ in range(2):
        await helper.detach_loop(device, backing_file=backing)
    assert not is_attached(device, backing)
    await helper.detach_loop(second, backing_file=backing)
    (Path(paths.vms_dir) / VM).rmdir()


async def test_a_backing_file_without_a_name_is_still_found(
    helper: InProcessHelper, paths: Paths, backing: str
) -> None:
    device = await helper.attach_loop(backing, read_only=False, vm_id=VM)
    Path(backing).unlink()
    (seen,) = (await helper.observe(vms_dir=paths.vms_dir)).loops
    assert (seen.device, seen.backing_file, seen.deleted) == (device, backing, True)
    await helper.detach_loop(device, backing_file=backing)
    assert not is_attached(device, backing)
    assert (await helper.observe(vms_dir=paths.vms_dir)).loops == ()


async def test_many_at_once_get_a_device_each(helper: InProcessHelper, backing: str) -> None:
    devices = await asyncio.gather(*(helper.attach_loop(backing, read_only=True, vm_id=VM) for _ in range(8)))
    assert len(set(devices)) == 8
    await asyncio.gather(*(helper.detach_loop(device, backing_file=backing) for device in devices))


async def test_a_missing_file_is_said(helper: InProcessHelper, paths: Paths) -> None:
    with pytest.raises(BangerError, match="No such file"):
        await helper.attach_loop(f"{paths.images_dir}/none", read_only=True, vm_id=VM)
