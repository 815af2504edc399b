"""/root out of ext2, ext3 and ext4 files of mke2fs: what is there, and what strangers would put there."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image import ext4tree
from banger.image.errors import ImageError
from banger.image.ext4tree import Ext4
from banger.image.layertree import Folder, walk
from banger.image.treetar import write_tree
from banger.model.notes import Notes

BIG = b"".join(struct.pack("<I", number) for number in range(300_000))
TARGET = "../" + "long/" * 30 + "end"


def home(folder: Path) -> Path:
    root = folder / "tree/root"
    root.mkdir(parents=True, mode=0o700)
    (root / ".bashrc").write_bytes(b"hello")
    (root / ".ssh").mkdir(mode=0o711)
    (root / ".ssh/config").write_bytes(b"Host *")
    (root / ".ssh/config").chmod(0o640)
    (root / "tool").write_bytes(b"#!/bin/sh")
    (root / "tool").chmod(0o4755)
    os.utime(root / "tool", (1, 1_600_000_000))
    (root / "big").write_bytes(BIG)
    with (root / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (root / "short").symlink_to("/etc/passwd")
    (root / "long").symlink_to(TARGET)
    os.link(root / ".bashrc", root / "same")
    os.mkfifo(root / "pipe")
    (root / b"caf\xe9".decode("utf-8", "surrogateescape")).write_bytes(b"latin")
    (root / "many").mkdir()
    for number in range(700):
        (root / f"many/a-name-of-some-length-{number}").touch()
    (folder / "tree/etc").mkdir()
    return folder / "tree"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home(tmp_path_factory.mktemp("ext4"))


def make(path: Path, tree: Path, *options: str) -> Path:
    path.unlink(missing_ok=True)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-d", str(tree), *options, str(path), "32m"],
        check=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
    )
    return path


def read(path: Path, name: bytes = b"root") -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """As the tar that is made of it, read by another reader."""
    descriptor = os.open(path, os.O_RDONLY)
    out = io.BytesIO()
    try:
        folder = Ext4(descriptor).folder(name)
        assert folder is not None
        write_tree(folder, out)
    finally:
        os.close(descriptor)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            found[info.name] = (info, content.read() if content else b"")
    return found


def tried(path: Path, *, notes: Notes | None = None) -> Folder | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return Ext4(descriptor, notes=notes).folder(b"root")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ext4"),
        ("-t", "ext4", "-b", "1024", "-I", "128"),
        ("-t", "ext4", "-O", "64bit,^metadata_csum"),
        ("-t", "ext4", "-O", "^dir_index,^flex_bg,ea_inode,large_dir", "-E", "encoding=utf8"),
        ("-t", "ext3", "-b", "1024"),
        ("-t", "ext2", "-b", "4096"),
        ("-t", "ext2", "-r", "0"),
    ],
    ids=" ".join,
)
def test_what_mke2fs_lays_down_is_read(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = read(make(tmp_path / "fs", tree, *options))
    paths = {f"./{path.relative_to(tree / 'root')}" for path in (tree / "root").rglob("*")}
    assert set(found) == (paths - {"./pipe"}) | {"."}
    assert all((info.uid, info.gid) == (0, 0) for info, _ in found.values())
    for path in (tree / "root").rglob("*"):
        info, content = found.get(f"./{path.relative_to(tree / 'root')}", (None, b""))
        if info is None:
            continue
        if path.is_symlink():
            assert info.linkname == os.readlink(path)
        elif path.is_dir():
            assert info.mode == stat.S_IMODE(path.stat().st_mode)
        elif not info.islnk():
            assert (info.mode, info.mtime) == (stat.S_IMODE(path.stat().st_mode), int(path.stat().st_mtime))
            assert content == path.read_bytes()
    links = [info for info, _ in found.values() if info.islnk()]
    assert [sorted((info.name, info.linkname)) for info in links] == [["./.bashrc", "./same"]]


def test_no_folder_is_none(tree: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "fs", tree, "-t", "ext4")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert Ext4(descriptor).folder(b"nothing") is None
        found = Ext4(descriptor).folder(b"etc")
    finally:
        os.close(descriptor)
    assert found is not None
    assert not found.children


def debugfs(path: Path, *commands: str) -> None:
    said = subprocess.run(
        ["debugfs", "-w", "-f", "-", str(path)],
        input="".join(f"{command}\n" for command in commands).encode(),
        check=True,
        timeout=60,
        capture_output=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert said.stderr.count(b"\n") <= 1, said.stderr


def rename(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: debugfs(path, "feature needs_recovery"), "journal"),
        (lambda path: debugfs(path, "feature meta_bg"), "features of ext4"),
        (lambda path: debugfs(path, "link /root /root/many/loop"), "two places"),
        (lambda path: debugfs(path, "sif /root/big size 0x7fffffffff"), "more in its files"),
        (lambda path: debugfs(path, "sif /root/big flags 0x10080000"), "inline"),
        (lambda path: debugfs(path, "sif /root/long size 5000000"), "a symlink of"),
        (lambda path: debugfs(path, "sif /root/big block[0] 7"), "broken tree"),
        (lambda path: debugfs(path, "sif /root/big block[5] 0x7fffffff"), "outside"),
        (lambda path: debugfs(path, "sif /root/many block[5] 0x7fffffff"), "behind its own end"),
        (lambda path: debugfs(path, "sif / block[0] 7"), "broken tree"),
        (lambda path: rename(path, b"short", b"../ab"), "a name"),
        (lambda path: rename(path, b"short", b"ab\0cd"), "a name"),
        (lambda path: rename(path, b"tool\0", b"same\0"), "a name"),
        (lambda path: os.truncate(path, 100_000), "behind its own end"),
        (lambda path: os.truncate(path, 1_500), "behind its own end"),
        (lambda path: path.write_bytes(bytes(5000)), "no ext4"),
    ],
)
def test_a_hostile_one_is_refused(tree: Path, tmp_path: Path, harm: Callable[[Path], None], why: str) -> None:
    path = make(tmp_path / "fs", tree, "-t", "ext4", "-O", "^metadata_csum")
    harm(path)
    with pytest.raises(BangerError, match=why) as caught:
        tried(path)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


@pytest.mark.parametrize(
    ("harm", "gone"),
    [
        ("feature needs_recovery", set()),
        ("link /root /root/many/loop", set()),
        ("sif /root/big size 0x7fffffffff", {"./big"}),
        ("sif /root/big block[5] 0x7fffffff", {"./big"}),
        ("sif /root/long size 5000000", {"./long"}),
        ("sif /root/.ssh block[0] 7", {"./.ssh/config"}),
        ("sif /root/tool mode 0", {"./tool"}),
    ],
)
def test_the_rest_of_a_damaged_one(tree: Path, tmp_path: Path, harm: str, gone: set[str]) -> None:
    path = make(tmp_path / "fs", tree, "-t", "ext4", "-O", "^metadata_csum")
    before = set(read(path))
    debugfs(path, harm)
    notes, out = Notes(), io.BytesIO()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        folder = Ext4(descriptor, notes=notes).folder(b"root")
        assert folder is not None
        write_tree(folder, out)
    finally:
        os.close(descriptor)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        assert before - {info.name for info in archive} == gone
    pipe = "A pipe, socket or device is left out: 'root/pipe'."
    damaged = [note for note in notes.lines() if note != pipe]
    assert len(damaged) == (0 if "recovery" in harm else 1)


def test_a_folder_further_down(tree: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "fs", tree, "-t", "ext4")
    assert set(read(path, b"root/.ssh")) == {".", "./config"}
    with path.open("rb") as file:
        for name in (b"root/short", b"root/tool", b"root/tool/x", b"root/../root", b"", b"root/"):
            assert Ext4(file.fileno()).folder(name) is None


def test_counts_are_bounded(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "fs", tree, "-t", "ext4")
    monkeypatch.setattr(ext4tree, "MAX_ENTRIES", 300)
    with pytest.raises(BangerError, match="more than 300 entries"):
        tried(path)


@pytest.fixture(scope="module")
def small(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One whose metadata lie close together, so that random harm meets them."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "tree/root/a").mkdir(parents=True)
    (folder / "tree/root/a/file").write_bytes(b"x" * 9000)
    (folder / "tree/root/link").symlink_to(TARGET)
    path = folder / "fs"
    subprocess.run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "16"),
            *("-O", "^has_journal,^resize_inode", "-d", str(folder / "tree"), str(path), "256k"),
        ],
        check=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
    )
    return path.read_bytes()


@settings(max_examples=150)
@given(st.integers(0, 1 << 32), st.integers(1, 12), st.booleans())
def test_harm_is_an_error_or_nothing(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, tolerant: bool
) -> None:
    """Or, where the rest is wanted, a note."""
    draw = random.Random(seed)
    data = bytearray(small)
    used = [at for at, byte in enumerate(data) if byte]
    for _ in range(count):
        data[min(draw.choice(used) + draw.randrange(-2, 3), len(data) - 1)] = draw.choice(
            (0, 1, 255, draw.randrange(256))
        )
    path = tmp_path_factory.getbasetemp() / "harmed"
    path.write_bytes(data)
    notes = Notes() if tolerant else None
    try:
        folder = tried(path, notes=notes)
    except ImageError:
        return
    assert all(line.isprintable() for line in (notes.lines() if notes else ()))
    for name, inode in walk(folder) if folder else ():
        assert b".." not in name.split(b"/")
        for _, length, position in inode.pieces or ():
            assert position + length <= len(data)
