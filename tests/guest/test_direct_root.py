"""A root that is the VM's own plain file system (reflink, dm-snapshot), booted on QEMU without a daemon.

This host's disk may offer neither; what the agent does with such a root is the same for both.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from banger.image.initramfs import GuestConfig
from banger.image.kernel import modules_disk
from banger.image.published import find_published
from banger.model.records import Image
from banger.vmm.protocol import Drive
from tests.artifacts import DOCKER_IMAGE, artifacts, obtain
from tests.capabilities import require
from tests.fakes.installed import DirectLauncher
from tests.lab.host import booted

pytestmark = [require("qemu"), pytest.mark.guest, pytest.mark.anyio]

SCRIPT = """
place=/lib/modules/$(uname -r)
modprobe -a veth wireguard
test -d /sys/module/wireguard
cat $place/added 2>/dev/null || echo new
echo kept > $place/added
stat -fc %T / /var/lib
ls -A $place | grep -c modules
umount $place
ls $place
grep -c /run/banger /proc/mounts || true
sync
"""


@pytest.fixture
def image() -> Image:
    obtain(images=(DOCKER_IMAGE,))
    found = find_published(Path(artifacts().paths.images_dir), DOCKER_IMAGE)
    assert found is not None
    return found


@pytest.fixture
def root(image: Image, tmp_path: Path) -> Path:
    """A copy that is the VM's own."""
    path = tmp_path / "root.ext4"
    subprocess.run(["cp", "--sparse=always", image.rootfs_path, str(path)], check=True, timeout=120)
    path.chmod(0o600)
    return path


async def test_modules_are_there_and_what_a_guest_adds_stays(
    image: Image, root: Path, tmp_path: Path
) -> None:
    base = artifacts()
    drives = (
        Drive(drive_id="root", path=str(root)),
        Drive(drive_id="modules", path=modules_disk(image), read_only=True),
    )
    config = GuestConfig(hostname="direct", root_mode="direct", modules="/dev/vdb", init="agent")
    for number, first in enumerate(("new", "kept")):
        folder = tmp_path / f"vm{number}"
        folder.mkdir(mode=0o700)
        launcher = DirectLauncher()
        async with booted(
            folder, base, config=config, drives=drives, launcher=launcher, memory_mib=256
        ) as guest:
            status, said = await guest.run(SCRIPT, timeout_s=300)
        assert status == 0, said
        words = said.split()
        assert words[:3] == [first, "ext2/ext3", "ext2/ext3"]
        assert int(words[3]) > 5
        # without the mount: what the guest added, on its own root
        assert words[4:] == ["added", "0"]
