"""Kernel, tool and image services on the small archive: made once, checked, published whole."""

from __future__ import annotations

import asyncio
import lzma
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import lz4.block
import msgspec
import pytest

from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.image import catalog, modules, ownkernel
from banger.image.archive import Archive, OpenArchive, debian_architecture
from banger.image.compress import LZ4_LEGACY_MAGIC
from banger.image.kernel import KernelService, link_kernel, write_kernel
from banger.image.published import RECORD
from banger.image.service import ImageService
from banger.image.tools import ToolService
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import Image, Kernel, now
from tests.artifacts import MemoryImages
from tests.fakes.debian_archive import Entry, FakeArchive, make_deb
from tests.fakes.kernels import make_bzimage, make_elf, make_module

pytestmark = pytest.mark.anyio

VERSION = "6.1.0-50-cloud-amd64"
DEPMOD = b"""#!/bin/sh
set -e
[ "$1" = --version ] && exit 0
[ "$1" = -b ]
echo dep > "$2/lib/modules/$3/modules.dep"
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"BANGER_HOME": str(tmp_path / "home")})


def opener(fake: FakeArchive, paths: Paths) -> OpenArchive:
    return lambda: Archive.open(paths.downloads_dir, mirror=fake.base, keyring=fake.key.keyring)


def tool_service(fake: FakeArchive, paths: Paths, host: dict[str, str] | None = None) -> ToolService:
    return ToolService(paths, Settings(), open_archive=opener(fake, paths), find=(host or {}).get)


def kernel_service(
    fake: FakeArchive, paths: Paths, *, images: Callable[[], Sequence[Image]] = tuple
) -> KernelService:
    return KernelService(
        paths,
        Settings(),
        tools=tool_service(fake, paths),
        open_archive=opener(fake, paths),
        images=images,
        make_disk=make_disk,
    )


made: list[Path] = []


async def make_disk(tree: Path, disk: Path, *, tools: ToolService, progress: Progress) -> None:
    """Says what it would be made of."""
    made.append(disk)
    disk.write_text(" ".join(sorted(path.name for path in tree.iterdir())))


def add_tools(fake: FakeArchive) -> None:
    fake.add_deb("kmod", make_deb([Entry("./bin/kmod", DEPMOD, mode=0o755)]), suite="bookworm")
    fake.add_deb("libkmod2", make_deb([Entry("./usr/lib/x/libkmod.so.2", b"")]), suite="bookworm")


def add_kernel(fake: FakeArchive) -> bytes:
    """A kernel in the archive, as Debian has it; returns its ELF."""
    kernel = make_elf([(0x1000, b"code" * 999 + bytes(90_000), 100_000)], behind=b"symbols")
    block = lz4.block.compress(kernel, store_size=False)
    payload = struct.pack("<II", LZ4_LEGACY_MAGIC, len(block)) + block + struct.pack("<I", len(kernel))
    architecture = debian_architecture()
    real = f"linux-image-{VERSION}"
    fake.add_deb(
        f"linux-image-cloud-{architecture}", make_deb([]), suite="bookworm", depends=f"{real} (= 1.0-1)"
    )
    fake.add_deb(
        real,
        make_deb(
            [
                Entry(f"./boot/vmlinuz-{VERSION}", make_bzimage(payload)),
                Entry(f"./boot/config-{VERSION}", b"CONFIG"),
                Entry(f"./lib/modules/{VERSION}/kernel/a.ko", make_module("a")),
                Entry(f"./lib/modules/{VERSION}/kernel/b/b.ko.xz", lzma.compress(make_module("b"))),
                Entry(f"./lib/modules/{VERSION}/modules.builtin", b""),
                Entry("./usr/share/doc/x", b""),
            ]
        ),
        suite="bookworm",
    )
    add_tools(fake)
    fake.publish("bookworm")
    return kernel


async def test_kernel_is_fetched_unpacked_and_recorded(archive: FakeArchive, paths: Paths) -> None:
    kernel = add_kernel(archive)
    service = kernel_service(archive, paths)
    events: list[ProgressEvent] = []
    assert service.list() == []
    found = await service.ensure("debian-bookworm", events.append)
    assert found.kernel_version == VERSION
    assert found.source == f"linux-image-{VERSION} 1.0-1"
    folder = service.folder("debian-bookworm")
    assert (folder / "vmlinux").stat().st_size < len(kernel) - 80_000  # trimmed
    assert (folder / "modules/kernel/a.ko").is_file()
    assert [path.name for path in (folder / "modules/kernel/b").iterdir()] == ["b.ko"]
    assert (folder / "modules/kernel/b/b.ko").read_bytes() == make_module("b")  # for any modprobe
    assert (folder / "modules/modules.dep").read_text() == "dep\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "kernel.json",
        "modules",
        "modules.ext4",
        "vmlinux",
    ]
    assert (folder / "modules.ext4").read_text() == "kernel modules.builtin modules.dep"
    assert service.list() == [found] == [service.get("debian-bookworm")]
    assert any(event.total for event in events)
    archive.requests.clear()
    assert await service.ensure("debian-bookworm") == found
    assert archive.requests == []


async def test_a_kernel_of_an_older_banger_gets_its_disk(archive: FakeArchive, paths: Paths) -> None:
    add_kernel(archive)
    service = kernel_service(archive, paths)
    await service.ensure("debian-bookworm")
    disk = service.folder("debian-bookworm") / "modules.ext4"
    disk.unlink()
    made.clear()
    await asyncio.gather(*(service.ensure("debian-bookworm") for _ in range(2)))
    assert disk.read_text() == "kernel modules.builtin modules.dep"
    assert made == [disk]


async def test_changed_kernel_is_refused(archive: FakeArchive, paths: Paths) -> None:
    add_kernel(archive)
    service = kernel_service(archive, paths)
    await service.ensure("debian-bookworm")
    vmlinux = service.folder("debian-bookworm") / "vmlinux"
    os.utime(vmlinux)  # touched, but the same: hashed again, and good
    await service.ensure("debian-bookworm")
    with vmlinux.open("r+b") as file:
        file.write(b"\x7fELX")
    with pytest.raises(BangerError, match="not the kernel that was put there") as caught:
        await service.ensure("debian-bookworm")
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_two_kernels_at_once_make_one(archive: FakeArchive, paths: Paths) -> None:
    add_kernel(archive)
    found = await asyncio.gather(
        *(kernel_service(archive, paths).ensure("debian-bookworm") for _ in range(3))
    )
    assert found[0] == found[1] == found[2]
    assert len([path for path, _ in archive.requests if path.endswith(f"{VERSION}_1.0-1_amd64.deb")]) == 1


async def test_a_failed_fetch_leaves_no_kernel(archive: FakeArchive, paths: Paths) -> None:
    add_kernel(archive)
    deb = next(path for path in archive.files if VERSION in path)
    archive.faults[deb] = "corrupt"
    service = kernel_service(archive, paths)
    with pytest.raises(BangerError):
        await service.ensure("debian-bookworm")
    assert service.list() == []
    assert [path.name for path in Path(paths.kernels_dir).iterdir()] == [".lock-debian-bookworm"]
    del archive.faults[deb]
    await service.ensure("debian-bookworm")


def kernel_folder(folder: Path, name: str = "bzImage") -> Path:
    kernel = make_elf([(0x1000, b"\0Linux version 6.9.1-mine (gcc) \0" + bytes(9000), 10_000)])
    block = lz4.block.compress(kernel, store_size=False)
    payload = struct.pack("<II", LZ4_LEGACY_MAGIC, len(block)) + block + struct.pack("<I", len(kernel))
    (folder / "modules/kernel").mkdir(parents=True)
    (folder / "modules/kernel/a.ko").write_bytes(make_module("a"))
    (folder / "modules/build").symlink_to("/usr/src")
    (folder / name).write_bytes(kernel if name == "vmlinux" else make_bzimage(payload))
    (folder / "initrd.img").write_bytes(b"070701")
    return folder


@pytest.mark.parametrize("image", ["bzImage", "vmlinux", "vmlinuz"])
async def test_a_kernel_is_taken_in_and_goes(
    archive: FakeArchive, paths: Paths, tmp_path: Path, image: str
) -> None:
    add_tools(archive)
    archive.publish("bookworm")
    service = kernel_service(archive, paths)
    source = kernel_folder(tmp_path / "mine", image)
    record = await service.take_in("mine", lambda staging: ownkernel.fill(source, staging, name="mine"))
    assert record == service.get("mine")
    assert (record.kernel_version, record.source) == ("6.9.1-mine", str(source / image))
    folder = service.folder("mine")
    names = ["initrd.img", "kernel.json", "modules", "modules.ext4", "vmlinux"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in (folder / "modules").iterdir()) == ["kernel", "modules.dep"]
    assert await service.ensure("mine") == record
    (tmp_path / "image").mkdir()
    assert link_kernel(folder, tmp_path / "image") == "initrd.img"
    with pytest.raises(BangerError) as caught:
        await service.take_in("mine", lambda staging: ownkernel.fill(source, staging, name="mine"))
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    service = await refused_while_used(paths, archive, record, folder=tmp_path / "image")
    assert await service.remove("mine") == record
    assert service.list() == []
    assert not [path for path in Path(paths.kernels_dir).iterdir() if path.name != ".lock-mine"]
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == names
    with pytest.raises(BangerError) as caught:
        await service.remove("mine")
    assert caught.value.code is ErrorCode.NOT_FOUND


async def refused_while_used(
    paths: Paths, archive: FakeArchive, kernel: Kernel, *, folder: Path
) -> KernelService:
    """By an image that was made with it, and one of the user's that points at it; the service that is
    returned knows others: one of an older namesake, a broken one, one of another kernel."""
    used = [
        image_of("made", artifact_dir=str(folder)),
        image_of("points", managed=False, kernel_path=f"{paths.kernels_dir}/{kernel.name}/vmlinux"),
    ]
    known: list[Image] = []
    service = kernel_service(archive, paths, images=lambda: known)
    for images in (used, used[:1], used[1:]):
        known[:] = images
        with pytest.raises(BangerError, match=f"in use by {len(images)} image") as caught:
            await service.remove(kernel.name)
        assert caught.value.code is ErrorCode.IN_USE
        assert caught.value.hint == f"delete first: {', '.join(image.name for image in images)}"
    older = folder.with_name("older")
    older.mkdir()
    write_kernel(older, b"another", record=msgspec.structs.replace(kernel, sha256="0" * 64))
    known[:] = [
        image_of("old", artifact_dir=str(older)),
        image_of("gone", artifact_dir=str(folder.with_name("nowhere"))),
        image_of("elsewhere", managed=False, kernel_path="/srv/vmlinux"),
    ]
    return service


def image_of(name: str, **fields: object) -> Image:
    return msgspec.convert(
        {"id": name, "name": name, "created_at": now(), "updated_at": now(), **fields}, Image
    )


async def test_a_kernel_that_cannot_be_taken_in_leaves_nothing(
    archive: FakeArchive, paths: Paths, tmp_path: Path
) -> None:
    service = kernel_service(archive, paths)
    source = kernel_folder(tmp_path / "mine")
    for content, code in (
        (b"text", ErrorCode.IMAGE_INVALID),
        (make_elf([(0x1000, b"no version", 99)]), ErrorCode.IMAGE_INVALID),
        (None, ErrorCode.INVALID_ARGUMENT),
    ):
        if content is None:
            (source / "bzImage").unlink()
        else:
            (source / "bzImage").write_bytes(content)
        with pytest.raises(BangerError) as caught:
            await service.take_in("mine", lambda staging: ownkernel.fill(source, staging, name="mine"))
        assert caught.value.code is code
    assert [path.name for path in Path(paths.kernels_dir).iterdir()] == [".lock-mine"]
    with pytest.raises(BangerError) as caught:
        await service.take_in("../x", lambda staging: ownkernel.fill(source, staging, name="x"))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_kernel_without_modules_has_all_built_in(
    archive: FakeArchive, paths: Paths, tmp_path: Path
) -> None:
    service = kernel_service(archive, paths)
    source = kernel_folder(tmp_path / "mine", "vmlinux")
    shutil.rmtree(source / "modules")
    await service.take_in("mine", lambda staging: ownkernel.fill(source, staging, name="mine"))
    assert modules.load_order(service.folder("mine") / "modules") == []


@pytest.mark.parametrize("name", ["unknown", "", "..", "a/b", ".lock-x"])
async def test_unknown_kernels(archive: FakeArchive, paths: Paths, name: str) -> None:
    with pytest.raises(BangerError) as caught:
        await kernel_service(archive, paths).ensure(name)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_tool_is_fetched_once(archive: FakeArchive, paths: Paths) -> None:
    script = b"#!/bin/sh\necho tool 1\n"
    archive.add_deb(
        "vhost-device-vsock",
        make_deb([Entry("./usr/bin/vhost-device-vsock", script, mode=0o755)]),
        suite="forky",
    )
    archive.publish("forky")
    tool = await tool_service(archive, paths).ensure_tool("vhost-device-vsock")
    assert Path(tool.path).read_bytes() == script
    assert tool.path.startswith(paths.tools_dir)
    assert tool.env == {}
    archive.requests.clear()
    assert await tool_service(archive, paths).ensure_tool("vhost-device-vsock") == tool
    assert archive.requests == []


async def test_the_hosts_own_tool_wins(archive: FakeArchive, paths: Paths) -> None:
    found = await tool_service(archive, paths, {"vhost-device-vsock": "/bin/true"}).ensure_tool(
        "vhost-device-vsock"
    )
    assert found.path == "/bin/true"
    assert archive.requests == []


async def test_mke2fs_is_tried_once_for_all_its_programs_and_in_memory(
    archive: FakeArchive, paths: Paths, tmp_path: Path
) -> None:
    """A file of the trial's would stay behind where the daemon is killed meanwhile."""
    calls, program = tmp_path / "calls", tmp_path / "mke2fs"
    program.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$@" >>{calls}\n')
    program.chmod(0o755)
    host: dict[str, str] = dict.fromkeys(("mke2fs", "debugfs", "e2fsck", "resize2fs"), str(program))
    tools = tool_service(archive, paths, host)
    for name in host:
        assert (await tools.ensure_tool(name)).path == str(program)
    (call,) = calls.read_text().splitlines()
    assert "/proc/self/fd/" in call


async def test_a_tool_that_does_not_run_here(archive: FakeArchive, paths: Paths) -> None:
    script = b"#!/bin/sh\nexit 127\n"
    archive.add_deb(
        "vhost-device-vsock",
        make_deb([Entry("./usr/bin/vhost-device-vsock", script, mode=0o755)]),
        suite="forky",
    )
    archive.publish("forky")
    with pytest.raises(BangerError, match="does not run on this host") as caught:
        await tool_service(archive, paths, {"vhost-device-vsock": "/bin/false"}).ensure_tool(
            "vhost-device-vsock"
        )
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    with pytest.raises(BangerError) as caught:
        await tool_service(archive, paths).ensure_tool("emacs")
    assert caught.value.code is ErrorCode.NOT_FOUND


def publish_image(paths: Paths, name: str = "mine") -> Image:
    """An image folder as a builder leaves it just before the store hears of it."""
    image_id = f"{name:0<64}"
    folder = Path(paths.images_dir, image_id)
    folder.mkdir(parents=True)
    vmlinux = make_elf([(0, b"x", 10)])
    kernel = Kernel(
        name="k", distro="d", arch="x86_64", kernel_version="6", sha256="", source="", imported_at=now()
    )
    write_kernel(folder, vmlinux, record=kernel)
    (folder / "rootfs.ext4").write_bytes(b"")
    image = Image(
        id=image_id,
        name=name,
        created_at=now(),
        updated_at=now(),
        rootfs_path="rootfs.ext4",
        kernel_path="vmlinux",
    )
    (folder / RECORD).write_bytes(msgspec.json.encode(image))
    return image


def image_service(fake: FakeArchive, paths: Paths, store: MemoryImages) -> ImageService:
    return ImageService(
        paths,
        Settings(),
        store=store,
        kernels=kernel_service(fake, paths),
        tools=tool_service(fake, paths),
    )


async def test_a_published_image_is_taken_into_the_store(archive: FakeArchive, paths: Paths) -> None:
    published, store = publish_image(paths), MemoryImages()
    service = image_service(archive, paths, store)
    assert service.list() == []
    found = await service.resolve("mine")
    assert found.id == published.id
    assert found.rootfs_path == f"{paths.images_dir}/{published.id}/rootfs.ext4"
    assert service.list() == [found] == [service.get(published.id[:10])]
    assert await service.resolve("mine") == found


async def test_a_deleted_image_leaves_nothing_and_an_unmanaged_one_its_files(
    archive: FakeArchive, paths: Paths, tmp_path: Path
) -> None:
    published, store = publish_image(paths), MemoryImages()
    service = image_service(archive, paths, store)
    await service.resolve("mine")
    aside = Path(paths.images_dir, ".old-crashed")
    aside.mkdir()
    (aside / "rootfs.ext4").write_bytes(b"")
    theirs = tmp_path / "rootfs.ext4"
    theirs.write_bytes(b"")
    await store.put(msgspec.structs.replace(published, id="f" * 64, name="theirs", rootfs_path=str(theirs)))
    assert (await service.delete(published.id[:10])).name == "mine"
    assert (await service.delete("theirs")).id == "f" * 64
    assert sorted(path.name for path in Path(paths.images_dir).iterdir()) == [".lock-mine", ".lock-theirs"]
    assert theirs.exists()
    for reference in ("mine", "theirs"):
        with pytest.raises(BangerError) as caught:
            await service.delete(reference)
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_incomplete_and_unknown_images(archive: FakeArchive, paths: Paths) -> None:
    published = publish_image(paths)
    service = image_service(archive, paths, MemoryImages())
    Path(paths.images_dir, published.id, "rootfs.ext4").unlink()
    with pytest.raises(BangerError, match="is missing") as caught:
        await service.resolve("mine")
    assert caught.value.code is ErrorCode.IMAGE_INVALID
    with pytest.raises(BangerError) as caught:
        await service.resolve("other")
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "debian-bookworm" in (caught.value.hint or "")


async def test_records_cannot_point_elsewhere(archive: FakeArchive, paths: Paths) -> None:
    published = publish_image(paths)
    record = Path(paths.images_dir, published.id, RECORD)
    for bad in ("/etc/passwd", "../../x"):
        record.write_bytes(msgspec.json.encode(msgspec.structs.replace(published, rootfs_path=bad)))
        with pytest.raises(BangerError) as caught:
            await image_service(archive, paths, MemoryImages()).resolve("mine")
        assert caught.value.code is ErrorCode.NOT_FOUND


def test_the_catalog_is_whole() -> None:
    for name, image in catalog.IMAGES.items():
        assert name == image.name
        assert image.kernel in catalog.KERNELS
        assert {"systemd-sysv", "openssh-server", "sudo", "git", "curl", "ca-certificates"} <= set(
            image.packages
        )
    assert Settings().default_image_name in catalog.IMAGES
