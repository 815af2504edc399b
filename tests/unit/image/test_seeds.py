"""Seeds: what a new /root begins with, made once for a key, and again when something of it has changed."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image import seeds
from banger.image.errors import ImageError
from banger.image.initramfs import GuestFile
from banger.image.workseeds import WorkSeeds
from banger.model.records import Image, now
from banger.system.ext4 import E2fsprogs
from tests.artifacts import MemoryImages

KEY = (GuestFile(path=".ssh/authorized_keys", content=b"ssh-ed25519 AAAA me\n", mode=0o600),)


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for info, content in entries:
            out.addfile(info, io.BytesIO(content))
    return path


def read(path: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path, "r:") as archive:
        found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            found[info.name] = (info, content.read() if content else b"")
    return found


def ext4_with(path: Path, tree: Path) -> Path:
    path.unlink(missing_ok=True)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(path), "8m"],
        check=True,
        timeout=60,
        capture_output=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    return path


def image(rootfs: Path) -> Image:
    return Image(
        id="1" * 64,
        name="mine",
        created_at=now(),
        updated_at=now(),
        managed=False,
        rootfs_path=str(rootfs),
    )


def test_an_images_own_home_with_bangers_files_in_their_place(tmp_path: Path) -> None:
    seed = write(
        tmp_path / "seed.tar",
        entry(".", type=tarfile.DIRTYPE, mode=0o750),
        entry("./.bashrc", b"old", uid=1000, mode=0o600),
        entry("./.profile", b"p", uid=1000, gid=1000, mode=0o640, mtime=77),
        entry("./same", type=tarfile.LNKTYPE, linkname="./.profile"),
        entry("./other", type=tarfile.LNKTYPE, linkname="./.bashrc"),
        entry("./.ssh", type=tarfile.DIRTYPE, mode=0o711),
        entry("./.ssh/authorized_keys", b"the image maker's"),
        entry("./l", type=tarfile.SYMTYPE, linkname="/etc/x"),
        entry("./.config", type=tarfile.SYMTYPE, linkname="/etc"),
        entry("./dev", type=tarfile.CHRTYPE),
        entry("./pipe", type=tarfile.FIFOTYPE),
        entry("./" + "long/" * 30 + "name", b"long"),
    )
    files = [
        *KEY,
        GuestFile(path=".bashrc", content=b"new"),
        GuestFile(path=".config/a/b", content=b"c"),
    ]
    stamp = seeds.prepare(seed, rootfs="", key="SHA256:a", files=files)
    found = read(seed)
    assert all((info.uid, info.gid) == (0, 0) for info, _ in found.values())
    assert found["."][0].mode == 0o750
    assert (found["./.profile"][0].mode, found["./.profile"][0].mtime) == (0o640, 77)
    assert found["./same"][0].linkname == "./.profile"
    assert found["./.bashrc"][1] == b"new"
    assert found["./other"][1] == b"old"  # a name of the image's file, which banger's takes no part of
    assert found["./.ssh"][0].mode == 0o711  # the image's own
    assert (found["./.ssh/authorized_keys"][0].mode, found["./.ssh/authorized_keys"][1]) == (
        0o600,
        KEY[0].content,
    )
    assert found["./l"][0].linkname == "/etc/x"
    assert found["./.config"][0].isdir()  # not through the image's symlink
    assert found["./.config/a"][0].mode == 0o755
    assert found["./" + "long/" * 30 + "name"][1] == b"long"
    assert {"./dev", "./pipe"}.isdisjoint(found)
    assert stamp == seeds.read_stamp(seed)
    assert stamp.inodes == sum(not info.islnk() for info, _ in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["seed.tar"]


def test_it_is_made_again_for_another_key_only(tmp_path: Path) -> None:
    seed = write(tmp_path / "seed.tar", entry("./.profile", b"p"))
    assert seeds.read_stamp(seed) is None
    seeds.prepare(seed, rootfs="", key="SHA256:a", files=KEY)
    first = seed.stat().st_ino
    seeds.prepare(seed, rootfs="", key="SHA256:a", files=KEY)
    assert seed.stat().st_ino == first
    other = GuestFile(path=".ssh/authorized_keys", content=b"ssh-ed25519 BBBB me\n", mode=0o600)
    with seed.open("rb") as reader:  # as a work disk that is being made
        stamp = seeds.prepare(seed, rootfs="", key="SHA256:b", files=[other])
        assert b"AAAA" in reader.read()
    assert stamp.key == "SHA256:b"
    found = read(seed)
    assert found["./.ssh/authorized_keys"][1] == other.content
    assert found["./.profile"][1] == b"p"


async def asserted(seed: Path, key: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    stamp = seeds.read_stamp(seed)
    assert stamp is not None
    assert stamp.key == key
    return read(seed)


@pytest.mark.anyio
async def test_a_users_file_system_gives_its_root_and_again_when_it_is_newer(tmp_path: Path) -> None:
    (tmp_path / "tree/root/.ssh").mkdir(parents=True)
    (tmp_path / "tree/root/.profile").write_bytes(b"one")
    rootfs = ext4_with(tmp_path / "rootfs", tmp_path / "tree")
    (tmp_path / "images").mkdir()
    store = MemoryImages()
    mine = image(rootfs)
    await store.put(mine)
    work = WorkSeeds(tmp_path / "images", store)
    seed = await work.ensure(mine, key="SHA256:a", files=KEY)
    assert (await asserted(seed, "SHA256:a"))["./.profile"][1] == b"one"
    noted = store.get(mine.id)
    assert noted is not None
    assert (noted.work_seed_path, noted.seeded_ssh_public_key_fingerprint) == (str(seed), "SHA256:a")
    inode = seed.stat().st_ino
    assert await work.ensure(noted, key="SHA256:a", files=KEY) == seed
    assert seed.stat().st_ino == inode
    (tmp_path / "tree/root/.profile").write_bytes(b"two")
    ext4_with(rootfs, tmp_path / "tree")
    await work.ensure(noted, key="SHA256:a", files=KEY)
    assert (await asserted(seed, "SHA256:a"))["./.profile"][1] == b"two"

    await work.sweep()
    assert seed.exists()
    await store.delete(mine.id)
    await work.sweep()
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.anyio
async def test_one_that_cannot_be_read_gives_an_empty_home(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.write_bytes(bytes(1 << 20))
    (tmp_path / "images").mkdir()
    store = MemoryImages()
    mine = image(rootfs)
    await store.put(mine)
    seed = await WorkSeeds(tmp_path / "images", store).ensure(mine, key="SHA256:a", files=KEY)
    assert set(read(seed)) == {".", "./.ssh", "./.ssh/authorized_keys"}
    assert "no work seed: it is no ext4" in caplog.text
    noted = store.get(mine.id)
    assert noted is not None
    assert noted.work_seed_path == ""
    assert not seeds.copy_home(tmp_path / "images/seed.tar", rootfs)
    assert not (tmp_path / "images/seed.tar").exists()


def test_what_fails_leaves_the_old_one(tmp_path: Path) -> None:
    seed = write(tmp_path / "seed.tar", entry("./big", bytes(4 << 20)))
    before = seed.read_bytes()
    stop = threading.Event()
    stop.set()
    with pytest.raises(seeds.Stopped):
        seeds.prepare(seed, rootfs="", key="SHA256:a", files=KEY, stop=stop)
    assert seed.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["seed.tar"]


@pytest.mark.parametrize("path", ["", "..", "../x", "a/../../b"])
def test_work_files_stay_below_their_folder(tmp_path: Path, path: str) -> None:
    seed = write(tmp_path / "seed.tar")
    with pytest.raises(BangerError):
        seeds.prepare(seed, rootfs="", key="k", files=[GuestFile(path=path, content=b"")])


@given(st.binary(max_size=1500))
def test_any_bytes_are_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    seed = tmp_path_factory.getbasetemp() / "any.tar"
    seed.write_bytes(data)
    try:
        seeds.prepare(seed, rootfs="", key="k", files=())
    except ImageError:
        return


@pytest.mark.anyio
async def test_a_disk_too_small_for_the_seed_says_so(tmp_path: Path) -> None:
    seed = write(tmp_path / "seed.tar", entry("./big", bytes(3 << 20)))
    seeds.prepare(seed, rootfs="", key="k", files=())
    with pytest.raises(BangerError, match=r"needs 4 MiB, and the work disk has 1 MiB") as caught:
        await seeds.make_work_disk(
            tmp_path / "disk", size_bytes=1 << 20, seed=seed, programs=E2fsprogs(mke2fs="false")
        )
    assert caught.value.code is ErrorCode.NO_SPACE
    with pytest.raises(ImageError, match="no work seed"):
        await seeds.make_work_disk(
            tmp_path / "disk", size_bytes=1 << 20, seed=write(tmp_path / "x"), programs=E2fsprogs()
        )
    assert not os.path.exists(tmp_path / "disk")
