"""cpio archives and the two halves of an initramfs, read back by a reader of the kernel's rules."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image import cpio, initramfs, modules
from banger.image.initramfs import GuestConfig, GuestFile
from banger.model.records import Image, now
from tests.fakes.kernels import make_module


def read_archives(data: bytes) -> dict[str, tuple[int, bytes]]:
    """name → (mode, content), by init/initramfs.c: headers and content at multiples of four from the
    start of the whole; zeros between archives; a later entry of a name wins. Parents must exist."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    trailers = 0
    while position < len(data):
        if data[position] == 0:
            position += 4 - position % 4 if position % 4 else 4
            continue
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        assert fields[2] == fields[3] == 0  # root's
        name = data[position + 110 : position + 110 + name_size - 1].decode()
        assert data[position + 110 + name_size - 1] == 0
        position += (110 + name_size + 3) & ~3
        content = data[position : position + size]
        assert len(content) == size
        position += (size + 3) & ~3
        if name == "TRAILER!!!":
            trailers += 1
            continue
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(found[parent][0])
        found[name] = (mode, content)
    assert trailers
    return found


def test_entries_have_parents_once() -> None:
    archive = cpio.CpioWriter()
    archive.add_file("a/b/c", b"x", mode=0o640)
    archive.add_file("a/b/d", b"yy")
    archive.add_folder("a/e", mode=0o700)
    data = archive.finish()
    assert len(data) % 512 == 0
    found = read_archives(data)
    assert list(found) == ["a", "a/b", "a/b/c", "a/b/d", "a/e"]
    assert found["a/b/c"] == (stat.S_IFREG | 0o640, b"x")
    assert found["a/e"][0] == stat.S_IFDIR | 0o700


@pytest.mark.parametrize("name", ["", "/", "..", "a/../b", "a//b", "./a", "a\0b", "x" * 5000])
def test_strange_names_are_refused(name: str) -> None:
    with pytest.raises(BangerError):
        cpio.CpioWriter().add_file(name, b"")


def test_twice_is_refused() -> None:
    archive = cpio.CpioWriter()
    archive.add_file("a", b"")
    with pytest.raises(BangerError, match="twice"):
        archive.add_file("a", b"")


names = st.from_regex(r"[a-z]{1,5}", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=40)), st.dictionaries(names, st.binary(max_size=40)))
def test_archives_behind_each_other(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    data = b""
    for files in (first, second):
        archive = cpio.CpioWriter()
        for name, content in files.items():
            archive.add_file(name, content)
        data += archive.finish()
    assert {name: content for name, (_, content) in read_archives(data).items()} == {**first, **second}


def test_config_lines() -> None:
    config = GuestConfig(
        hostname="calm-otter",
        address="172.16.0.2/24",
        gateway="172.16.0.1",
        mac="06:00:AC:10:00:02",
        overlay="/dev/vdb",
        work="/dev/vdc",
        workdir="/srv/my app",
        env=("A=1", "B=two words"),
    )
    assert config.encode().decode().splitlines() == [
        "hostname calm-otter",
        "address 172.16.0.2/24",
        "gateway 172.16.0.1",
        "mac 06:00:AC:10:00:02",
        "root_mode overlay",
        "root /dev/vda",
        "overlay /dev/vdb",
        "work /dev/vdc",
        "init auto",
        "workdir /srv/my app",
        "env A=1",
        "env B=two words",
    ]


def image(workdir: str) -> Image:
    return Image(id="0" * 64, name="x", created_at=now(), updated_at=now(), workdir=workdir)


def test_an_images_environment_fits_the_config() -> None:
    taken, left = initramfs.fit_env(("A=1", "B=x\ny", "C=", "=D", "E", "F=\udc80"))
    assert (taken, left) == (("A=1", "C=", "F=\udc80"), ("B", "", "E"))
    taken, left = initramfs.fit_env([f"V{number}={'x' * 150}" for number in range(1000)])
    assert len(taken) + len(left) == 1000
    config = GuestConfig(hostname="x", workdir="/" + "w" * 230, env=taken)
    assert len(config.encode()) < 65_000


@pytest.mark.parametrize(
    ("workdir", "given"),
    [
        ("/app", "/app"),
        ("", ""),
        ("/", ""),
        ("//", ""),
        ("app", ""),
        ("/a\nroot /dev/vdb", ""),
        ("/" * 999, ""),
    ],
)
def test_an_images_workdir_fits_the_config(workdir: str, given: str) -> None:
    assert initramfs.image_workdir(image(workdir)) == given


@pytest.mark.parametrize("value", ["a\nroot /dev/vdb", "a\rb", "a\0b"])
def test_values_cannot_add_lines(value: str) -> None:
    for config in (GuestConfig(hostname=value), GuestConfig(hostname="x", env=(f"K={value}",))):
        with pytest.raises(BangerError) as caught:
            config.encode()
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def module_tree(folder: Path) -> Path:
    (folder / "kernel").mkdir(parents=True)
    for name in modules.GUEST_MODULES:
        depends = "virtio" if name.startswith("virtio") else ""
        (folder / f"kernel/{name}.ko").write_bytes(make_module(name, depends))
    (folder / "kernel/virtio.ko").write_bytes(make_module("virtio"))
    (folder / "modules.builtin").write_text("")
    return folder


def agent(folder: Path, content: bytes = b"one") -> Path:
    path = folder / "agent"
    path.write_bytes(b"\x7fELF" + content)
    return path


def test_guest_initrd_is_both_archives(tmp_path: Path) -> None:
    shared = initramfs.ensure_shared(module_tree(tmp_path / "m"), agent(tmp_path), tmp_path / "out")
    out = tmp_path / "initrd.img"
    out.write_bytes(b"old")
    initramfs.build_guest_initrd(
        shared,
        GuestConfig(hostname="x"),
        files=[
            GuestFile(path="etc/hostname", content=b"x\n"),
            GuestFile(path="etc/ssh/key", content=b"secret", mode=0o600),
        ],
        out=out,
    )
    found = read_archives(out.read_bytes())
    assert found["init"] == (stat.S_IFREG | 0o755, b"\x7fELFone")
    assert found["banger/config"][1].startswith(b"hostname x\n")
    assert found["banger/files/etc/hostname"] == (stat.S_IFREG | 0o644, b"x\n")
    assert found["banger/files/etc/ssh/key"] == (stat.S_IFREG | 0o600, b"secret")
    order = found["banger/modules"][1].decode().splitlines()
    assert order[0] == "/banger/ko/virtio.ko"
    assert len(order) == len(modules.GUEST_MODULES) + 1
    assert all(line.lstrip("/") in found for line in order)
    assert out.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"m", "agent", "out", "initrd.img"}


def test_an_unaligned_shared_archive_is_padded(tmp_path: Path) -> None:
    archive = cpio.CpioWriter()
    archive.add_file("a", b"x")
    shared = tmp_path / "shared"
    shared.write_bytes(archive.finish() + b"\0")
    initramfs.build_guest_initrd(shared, GuestConfig(hostname="x"), files=[], out=tmp_path / "out")
    assert {"a", "banger/config"} <= set(read_archives((tmp_path / "out").read_bytes()))


@pytest.mark.parametrize("path", ["../x", "/../x", "a/../../x", ""])
def test_guest_files_stay_below_their_folder(path: str) -> None:
    with pytest.raises(BangerError):
        initramfs.guest_archive(GuestConfig(hostname="x"), [GuestFile(path=path, content=b"")])


def test_shared_is_made_again_only_when_something_is_new(tmp_path: Path) -> None:
    tree, out = module_tree(tmp_path / "m"), tmp_path / "out"
    first = initramfs.ensure_shared(tree, agent(tmp_path), out)
    before = first.stat()
    assert initramfs.ensure_shared(tree, agent(tmp_path), out) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    second = initramfs.ensure_shared(tree, agent(tmp_path, b"two"), out)
    assert second != first
    assert first.exists()  # a VM that is just starting may still read it
    os.utime(first, (1, 1))
    third = initramfs.ensure_shared(tree, agent(tmp_path, b"three"), out)
    assert sorted(out.iterdir()) == sorted([second, third])


def test_missing_agent_says_how_to_get_it() -> None:
    with pytest.raises(BangerError) as caught:
        initramfs.agent_binary("pdp11")
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert caught.value.hint


def test_full_disk_has_its_code(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_bytes(b"")
    (tmp_path / ".out.tmp").symlink_to("/dev/full")
    with pytest.raises(BangerError) as caught:
        initramfs.build_guest_initrd(shared, GuestConfig(hostname="x"), files=[], out=tmp_path / "out")
    assert caught.value.code is ErrorCode.NO_SPACE
    assert {path.name for path in tmp_path.iterdir()} == {"shared"}
