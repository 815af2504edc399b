"""The pass over a root's tar: what is dropped, added, split off, noted and refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.image import catalog, debian, rootfs, sources
from banger.image.rootfs import TreeFile
from banger.system.ext4 import XAttr


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    out.seek(0)
    return out


def read(path: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(path) as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            found[info.name] = (info, content.read() if content else b"")
    return found


def test_owners_modes_and_content_stay(tmp_path: Path) -> None:
    source = tar(
        folder("./"),
        folder("./usr"),
        member("./usr/sudo", b"x" * 5000, mode=0o4755, uid=7, gid=100_000, mtime=12.75, uname="daemon"),
        member("./dev-null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("./link", type=tarfile.SYMTYPE, linkname="../../anywhere"),
    )
    result = rootfs.rewrite(source, tmp_path / "root.tar", tmp_path / "seed.tar")
    found = read(tmp_path / "root.tar")
    info, content = found["./usr/sudo"]
    assert (info.mode, info.uid, info.gid, info.mtime, info.uname) == (0o4755, 7, 100_000, 12, "")
    assert content == b"x" * 5000
    assert (found["./dev-null"][0].devmajor, found["./dev-null"][0].devminor) == (1, 3)
    assert found["./link"][0].linkname == "../../anywhere"
    assert result.entries == 5
    assert result.content_bytes == (2 + 2) * 4096 + 5 * 256


def test_root_home_becomes_the_seed(tmp_path: Path) -> None:
    source = tar(
        folder("root", 0o700),
        member("root/.profile", b"p"),
        folder("root/bin"),
        member("root/bin/a", b"a"),
        member("root/bin/b", type=tarfile.LNKTYPE, linkname="root/bin/a"),
        member("rootless", b"stays"),
    )
    rootfs.rewrite(source, tmp_path / "root.tar", tmp_path / "seed.tar")
    assert set(read(tmp_path / "root.tar")) == {"./root", "./rootless"}
    seed = read(tmp_path / "seed.tar")
    assert set(seed) == {"./.profile", "./bin", "./bin/a", "./bin/b"}
    assert seed["./bin/b"][0].linkname == "./bin/a"


def test_hard_links_repeat_their_target(tmp_path: Path) -> None:
    source = tar(
        member("a", b"x", mode=0o4755, uid=3, gid=4, mtime=99),
        member("b", type=tarfile.LNKTYPE, linkname="./a", mode=0o644, uid=0, mtime=5),
        member("c", type=tarfile.LNKTYPE, linkname="b"),
    )
    rootfs.rewrite(source, tmp_path / "root.tar", tmp_path / "seed.tar")
    for name in ("./b", "./c"):
        info = read(tmp_path / "root.tar")[name][0]
        assert info.islnk()
        assert (info.mode, info.uid, info.gid, info.mtime) == (0o4755, 3, 4, 99)


def test_xattrs_are_noted(tmp_path: Path) -> None:
    binary = b"\x01\0\0\x02\xff\n=".decode("utf-8", "surrogateescape")
    source = tar(
        member("ping", pax_headers={"SCHILY.xattr.security.capability": binary}),
        member("f", pax_headers={"SCHILY.xattr.user.note": binary, "comment": "no"}),
        member("g", pax_headers={"LIBARCHIVE.xattr.user.a%20b": "aGk="}),
    )
    result = rootfs.rewrite(source, tmp_path / "root.tar", tmp_path / "seed.tar")
    assert result.xattrs == [
        XAttr("/f", "user.note", b"\x01\0\0\x02\xff\n="),
        XAttr("/g", "user.a b", b"hi"),
    ]
    # mke2fs brings this one itself: it must still be in the tar
    headers = read(tmp_path / "root.tar")["./ping"][0].pax_headers
    assert (
        headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape")
        == b"\x01\0\0\x02\xff\n="
    )


def test_added_replaced_and_dropped(tmp_path: Path) -> None:
    source = tar(folder("etc"), member("etc/fstab", b"old", uid=5), member("etc/gone", b""), folder("usr"))
    rootfs.rewrite(
        source,
        tmp_path / "root.tar",
        tmp_path / "seed.tar",
        add=[TreeFile("etc/fstab", b"new"), TreeFile("etc/a/b", target="/dev/null")],
        drop=lambda path: path == "etc/gone",
    )
    found = read(tmp_path / "root.tar")
    assert found["./etc/fstab"][1] == b"new"
    assert found["./etc/fstab"][0].uid == 0
    assert found["./etc/a/b"][0].linkname == "/dev/null"
    assert "./etc/gone" not in found
    names = list(found)
    assert names.index("./etc/a") < names.index("./etc/a/b")


@pytest.mark.parametrize(
    "bad",
    [
        member("a/../../b"),
        member("x" * 300),
        member("h", type=tarfile.LNKTYPE, linkname="nothing"),
        member("h", type=tarfile.LNKTYPE, linkname="../etc/shadow"),
        member("root/h", type=tarfile.LNKTYPE, linkname="there"),
        member("g", pax_headers={"LIBARCHIVE.xattr.user.a": "!"}),
        member("g", pax_headers={"SCHILY.xattr.user.a": "x" * 70_000}),
    ],
)
def test_hostile_entries_are_refused(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(BangerError):
        rootfs.rewrite(tar(member("there"), bad), tmp_path / "r", tmp_path / "s")


def test_truncated_stream_is_refused(tmp_path: Path) -> None:
    whole = tar(member("a", b"x" * 10_000)).getvalue()
    for cut in (0, 100, 700, 5000):
        with pytest.raises(BangerError):
            rootfs.rewrite(io.BytesIO(whole[:cut]), tmp_path / "r", tmp_path / "s")


@given(st.binary(max_size=1500))
def test_any_bytes_are_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    base = tmp_path_factory.getbasetemp()
    try:
        rootfs.rewrite(io.BytesIO(data), base / "r", base / "s")
    except BangerError:
        pass


def test_the_recipe_needs_no_chroot_and_keeps_secrets_out() -> None:
    argv = debian.command(
        catalog.IMAGES["debian-bookworm"],
        mirror="http://mirror.example.org/debian",
        security="",
        architecture="amd64",
        proxies=sources.Proxies({"http": "http://proxy.example.org"}, {}),
        keyring=Path("/k.gpg"),
    )
    assert not [word for word in argv if "hook" in word]
    assert '--aptopt=Acquire::http::Proxy "http://proxy.example.org"' in argv
    assert debian.is_dropped("etc/apt/apt.conf.d/99mmdebstrap")
    assert debian.is_dropped("etc/ssh/ssh_host_rsa_key")
    assert not debian.is_dropped("etc/ssh/sshd_config")
    added = {entry.path: entry for entry in debian.changes()}
    assert added["etc/machine-id"].content == b""
