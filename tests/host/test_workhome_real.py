"""The user's part of a work disk on a real ext4: any name, the right owner and mode, and a full disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.image import seeds
from banger.image.ext4tree import Ext4
from banger.image.hostfiles import HostHome
from banger.image.initramfs import GuestFile
from banger.image.layertree import Folder, walk
from banger.image.workhome import UsersPart, make_users_disk
from banger.system import ext4
from banger.system.run import run
from tests.artifacts import Artifacts, artifacts
from tests.capabilities import require

pytestmark = [pytest.mark.anyio, pytest.mark.host, pytest.mark.limit(1800), require("mmdebstrap")]

NAMES = ('quo"te', "back\\slash", "new\nline", "-x", "größe", "l" * 255, "\udcff")


@pytest.fixture(scope="module")
def made() -> Artifacts:
    return artifacts()


@pytest.fixture
def seed(made: Artifacts, tmp_path: Path) -> Path:
    own = tmp_path / "work-seed.tar"
    shutil.copyfile(made.work_seed, own)
    key = GuestFile(path=".ssh/authorized_keys", content=b"me\n", mode=0o600)
    seeds.prepare(own, rootfs="", key="SHA256:me", files=[key])
    return own


async def test_a_disk_with_awkward_names_is_sound(made: Artifacts, seed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in NAMES:
        (home / name).write_bytes(os.fsencode(name))
    (home / "large").write_bytes(b"x" * (3 << 20))
    disk = tmp_path / "work.ext4"
    part = UsersPart(
        HostHome(str(home)), (FileSync(host="~", guest="~/a/b", mode=0o640),), git_email="a@example.org"
    )
    said = await make_users_disk(disk, size_bytes=1 << 30, seed=seed, part=part, programs=made.e2fsprogs)
    assert said == ()
    await ext4.check(disk, programs=made.e2fsprogs)
    with disk.open("rb") as file:
        top = Ext4(file.fileno()).folder(b"a")
        assert isinstance(top, Folder)
        found = dict(walk(top))
    assert set(found) == {b"b", b"b/large", *(b"b/" + os.fsencode(name) for name in NAMES)}
    assert found[b"b/large"].size == 3 << 20
    assert {inode.mode for path, inode in found.items() if path != b"b"} == {0o640}
    for path, wanted in (("/.gitconfig", "Mode:  0644"), ("/a/b/large", "User:     0   Group:     0")):
        shown = await run(
            [made.e2fsprogs.debugfs, "-R", f"stat {path}", str(disk)], timeout_s=30, env=made.e2fsprogs.env
        )
        assert wanted in shown.stdout.decode()


async def test_a_disk_that_mke2fs_cannot_fill_names_the_entry(
    made: Artifacts, seed: Path, tmp_path: Path
) -> None:
    """What ext4 needs for itself is mke2fs's to know."""
    size = 64 << 20
    (tmp_path / "big").write_bytes(os.urandom(1 << 20) * 63)
    part = UsersPart(HostHome(str(tmp_path)), (FileSync(host="~/big", guest="~/big"),))
    with pytest.raises(BangerError, match=r"too small.* entry 1, '~/big', needs most") as caught:
        await make_users_disk(
            tmp_path / "work.ext4", size_bytes=size, seed=seed, part=part, programs=made.e2fsprogs
        )
    assert caught.value.code is ErrorCode.NO_SPACE
    assert sorted(os.listdir(tmp_path)) == ["big", "work-seed.tar"]
