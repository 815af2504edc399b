"""The real thing: kernel, tools and default image as the product makes them, and ext4 without mounts.

Uses the shared artifacts (tests/artifacts.py), which the product's own services build on first use.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image import elf, modules, rootfs, seeds
from banger.image.initramfs import GuestFile
from banger.system import ext4
from banger.system.run import run
from tests.artifacts import Artifacts, artifacts, services
from tests.capabilities import require

pytestmark = [pytest.mark.anyio, pytest.mark.host, pytest.mark.limit(1800), require("mmdebstrap")]


@pytest.fixture(scope="module")
def made() -> Artifacts:
    return artifacts()


async def debugfs(made: Artifacts, image: Path, command: str) -> str:
    done = await run(
        [made.e2fsprogs.debugfs, "-R", command, str(image)], timeout_s=30, env=made.e2fsprogs.env
    )
    return done.stdout.decode("utf-8", "replace")


def test_kernel_is_trimmed_and_has_what_a_guest_needs(made: Artifacts) -> None:
    data = made.vmlinux.read_bytes()
    assert len(data) < 45 << 20
    for part in elf.segments(data):
        if part.kind == 1 and part.file_size:
            last = data[part.offset + max(0, part.file_size - elf.PAGE) : part.offset + part.file_size]
            assert last.strip(b"\0")  # no page of zeros at a segment's end
    names = [module.name for module in modules.load_order(made.modules_dir)]
    assert {*modules.GUEST_MODULES, "virtio", "virtio_ring", "vsock"} <= set(names)
    assert names.index("virtio_ring") < names.index("virtio_mmio")
    assert sum(len(module.content) for module in modules.load_order(made.modules_dir)) < 3 << 20
    assert (made.modules_dir / "modules.dep.bin").is_file()


def test_initramfs_is_small_and_kept(made: Artifacts) -> None:
    path = made.initramfs()
    assert path.stat().st_size < 3 << 20
    assert made.initramfs() == path


async def test_rootfs_is_clean_and_as_debian_made_it(made: Artifacts) -> None:
    await ext4.check(made.rootfs, programs=made.e2fsprogs)
    # (path, mode, owner) of what only a tar with owners can give
    sudo = await debugfs(made, made.rootfs, "stat /usr/bin/sudo")
    assert "Mode:  04755" in sudo
    assert "User:     0" in sudo
    shadow = await debugfs(made, made.rootfs, "stat /etc/shadow")
    assert "Mode:  0640" in shadow
    assert "Group:    42" in shadow
    assert "Size: 0" in await debugfs(made, made.rootfs, "stat /etc/machine-id")
    assert "ssh_host_" not in await debugfs(made, made.rootfs, "ls /etc/ssh")
    assert "root:*:" in await debugfs(made, made.rootfs, "cat /etc/shadow")  # no password opens it
    assert "systemd" in await debugfs(made, made.rootfs, "stat /usr/sbin/init")
    listing = await debugfs(made, made.rootfs, "ls -p /root")
    assert [line.split("/")[5] for line in listing.splitlines() if line.count("/") > 5] == [".", ".."]
    assert "security.capability" in await debugfs(made, made.rootfs, "ea_list /usr/bin/ping")
    features = await debugfs(made, made.rootfs, "stats -h")
    assert "extent" in features
    assert "resize_inode" not in features


async def test_a_work_disk_is_sparse_and_clean(made: Artifacts, tmp_path: Path) -> None:
    disk = tmp_path / "work.ext4"
    files = [GuestFile(path=".ssh/authorized_keys", content=b"ssh-ed25519 AAAA me\n", mode=0o600)]
    seed = tmp_path / "seeds/work-seed.tar"
    seed.parent.mkdir()
    shutil.copyfile(made.work_seed, seed)
    seeds.prepare(seed, rootfs="", key="SHA256:me", files=files)
    await seeds.make_work_disk(disk, size_bytes=8 << 30, seed=seed, programs=made.e2fsprogs)
    found = disk.stat()
    assert found.st_size == 8 << 30
    assert found.st_blocks * 512 < 2 << 20
    await ext4.check(disk, programs=made.e2fsprogs)
    assert "ssh-ed25519 AAAA me" in await debugfs(made, disk, "cat /.ssh/authorized_keys")
    assert "Mode:  0600" in await debugfs(made, disk, "stat /.ssh/authorized_keys")
    assert "Mode:  0700" in await debugfs(made, disk, "stat /.ssh")
    assert "Mode:  0644" in await debugfs(made, disk, "stat /.bashrc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seeds", "work.ext4"]


async def test_disks_grow_and_never_shrink(made: Artifacts, tmp_path: Path) -> None:
    disk = tmp_path / "disk.ext4"
    await ext4.make(disk, size_bytes=64 << 20, programs=made.e2fsprogs)
    await ext4.grow(disk, size_bytes=1 << 30, programs=made.e2fsprogs)
    await ext4.grow(disk, size_bytes=1 << 30, programs=made.e2fsprogs)
    await ext4.check(disk, programs=made.e2fsprogs)
    assert disk.stat().st_size == 1 << 30
    assert "Block count:              262144" in await debugfs(made, disk, "stats -h")
    with pytest.raises(BangerError, match="only grow"):
        await ext4.grow(disk, size_bytes=64 << 20, programs=made.e2fsprogs)


async def test_content_that_does_not_fit(made: Artifacts, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("./big")
        info.size = 40 << 20
        archive.addfile(info, io.BytesIO(os.urandom(info.size)))
    with pytest.raises(BangerError) as caught:
        await ext4.make(tmp_path / "x", size_bytes=32 << 20, programs=made.e2fsprogs, tar=out.getvalue())
    assert caught.value.code is ErrorCode.NO_SPACE


async def test_metadata_survives_the_way_into_ext4(made: Artifacts, tmp_path: Path) -> None:
    """All that SPEC §5 names, through the rewriting pass, mke2fs and debugfs, read back by debugfs."""
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        add("setuid", b"x", mode=0o4711, uid=12, gid=100_001, mtime=1_600_000_000)
        add("hard", type=tarfile.LNKTYPE, linkname="setuid", mode=0o600, uid=99)
        add("sym", type=tarfile.SYMTYPE, linkname="/no/where")
        add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("fifo", type=tarfile.FIFOTYPE, mode=0o622)
        binary = bytes(range(256)).decode("utf-8", "surrogateescape")
        add("with space", b"y", pax_headers={"SCHILY.xattr.user.note": binary})
        add("trusted", type=tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
        add(b"\xff\xfe-name".decode("utf-8", "surrogateescape"), b"z")
    source.seek(0)
    result = rootfs.rewrite(source, tmp_path / "root.tar", tmp_path / "seed.tar")
    image = tmp_path / "x.ext4"
    await ext4.make(image, size_bytes=64 << 20, programs=made.e2fsprogs, tar=tmp_path / "root.tar")
    await ext4.set_xattrs(image, result.xattrs, programs=made.e2fsprogs)
    await ext4.check(image, programs=made.e2fsprogs)
    for name in ("/setuid", "/hard"):
        found = await debugfs(made, image, f"stat {name}")
        assert "Mode:  04711" in found
        assert "User:    12" in found
        assert "Group: 100001" in found
        assert "Links: 2" in found
    assert "/no/where" in await debugfs(made, image, "stat /sym")
    assert "Type: character special" in await debugfs(made, image, "stat /null")
    assert "Type: FIFO" in await debugfs(made, image, "stat /fifo")
    value = tmp_path / "value"
    await debugfs(made, image, f'ea_get -f {value} "/with space" user.note')
    assert value.read_bytes() == bytes(range(256))
    assert 'trusted.overlay.opaque (1) = "y"' in await debugfs(made, image, "ea_list /trusted")
    assert "-name" in await debugfs(made, image, "ls -p /")


async def test_an_attribute_that_cannot_be_set_is_an_error(made: Artifacts, tmp_path: Path) -> None:
    image = tmp_path / "x.ext4"
    await ext4.make(image, size_bytes=16 << 20, programs=made.e2fsprogs)
    with pytest.raises(BangerError, match="could not set attributes"):
        await ext4.set_xattrs(image, [ext4.XAttr("/none", "user.a", b"x")], programs=made.e2fsprogs)
    with pytest.raises(BangerError) as caught:
        await ext4.set_xattrs(image, [ext4.XAttr("/a\nrm b", "user.a", b"x")], programs=made.e2fsprogs)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_a_second_home_needs_no_build(made: Artifacts, tmp_path: Path) -> None:
    made.seed_home(tmp_path / "home")
    _, images, _ = services(tmp_path / "home")
    image = await images.resolve("debian-bookworm")
    assert image.id == made.image.id
    assert image.rootfs_path.startswith(str(tmp_path))
    assert stat.S_IMODE(Path(image.rootfs_path).stat().st_mode) == 0o444
