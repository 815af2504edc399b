"""Images of the user's own files: looked at before they are taken, copied whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from banger.errors import BangerError, ErrorCode
from banger.image import initramfs, own
from banger.image.kernel import check_kernel, read_kernel
from banger.image.own import OwnFiles
from banger.image.published import read_image
from banger.model.progress import no_progress

pytestmark = pytest.mark.anyio


def ext4(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(8 << 20)
        file.seek(0x438)
        file.write(b"\x53\xef")
    return path


@pytest.fixture
def files(tmp_path: Path) -> OwnFiles:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF kernel")
    (tmp_path / "initrd").write_bytes(b"070701")
    (tmp_path / "modules/kernel").mkdir(parents=True)
    (tmp_path / "modules/kernel/a.ko").write_bytes(b"module")
    (tmp_path / "modules/build").symlink_to("/usr/src")
    return OwnFiles(
        rootfs=str(ext4(tmp_path / "rootfs")),
        kernel=str(tmp_path / "vmlinux"),
        initrd=str(tmp_path / "initrd"),
        modules=str(tmp_path / "modules"),
    )


async def test_promotion_copies_everything(files: OwnFiles, tmp_path: Path) -> None:
    image = own.unmanaged("mine", files)
    assert (image.managed, image.artifact_dir, image.rootfs_path) == (False, "", files.rootfs)
    root = tmp_path / "images"
    root.mkdir()
    (root / ".staging-mine").mkdir()  # a crash's
    made = await own.promote(root, image, progress=no_progress)
    assert [path.name for path in root.iterdir()] == [image.id]
    folder = root / image.id
    assert made == read_image(folder)
    assert (made.id, made.name, made.managed) == (image.id, "mine", True)
    assert all(
        path.startswith(f"{folder}/")
        for path in (made.rootfs_path, made.kernel_path, made.initrd_path, made.modules_dir)
    )
    assert sorted(path.name for path in (folder / "modules").iterdir()) == ["kernel"]
    rootfs = (folder / "rootfs.ext4").stat()
    assert rootfs.st_size == 8 << 20
    assert rootfs.st_blocks * 512 < 1 << 20
    kernel = read_kernel(folder)
    assert kernel is not None
    check_kernel(folder, kernel)


async def test_what_fails_leaves_nothing(files: OwnFiles, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    image = own.unmanaged("mine", files)
    os.unlink(files.initrd)
    with pytest.raises(BangerError):
        await own.promote(root, image, progress=no_progress)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("field", ["rootfs", "kernel", "initrd", "modules"])
def test_files_that_cannot_be_used(files: OwnFiles, field: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("text")
    bad = ["relative", str(tmp_path / "missing"), str(tmp_path / "pipe")]
    bad += [] if field == "modules" else [str(tmp_path)]
    bad += [str(tmp_path / "text")] if field != "initrd" else []
    for path in bad:
        changed = msgspec.convert({**msgspec.to_builtins(files), field: path}, OwnFiles)
        with pytest.raises(BangerError, match=f"^{field}: ") as caught:
            own.unmanaged("mine", changed)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_kernels_own_initrd_comes_first(files: OwnFiles, tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"\x7fELF agent")
    initrd = Path(files.initrd)
    plain = initramfs.ensure_shared(None, agent, tmp_path / "out")
    both = initramfs.ensure_shared(None, agent, tmp_path / "out", initrd=initrd)
    assert both.read_bytes() == b"070701" + bytes(506) + plain.read_bytes()
    initrd.write_bytes(b"070701 longer")
    assert initramfs.ensure_shared(None, agent, tmp_path / "out", initrd=initrd) != both
    with pytest.raises(BangerError):
        initramfs.ensure_shared(None, agent, tmp_path / "out", initrd=tmp_path / "missing")
