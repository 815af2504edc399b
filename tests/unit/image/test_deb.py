"""Binary packages: what is taken out of them, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image import deb
from tests.fakes.debian_archive import Entry, make_ar, make_deb, make_tar


def extract(tmp_path: Path, content: bytes) -> tuple[Path, list[str]]:
    package = tmp_path / "x.deb"
    package.write_bytes(content)
    target = tmp_path / "out"
    target.mkdir()
    return target, deb.extract(package, target, lambda path: path if path.startswith("usr/") else None)


@pytest.mark.parametrize("compression", ["xz", "gzip", "zstd", "none"])
def test_wanted_files_arrive(tmp_path: Path, compression: str) -> None:
    content = os.urandom(3 << 20)
    target, written = extract(
        tmp_path,
        make_deb(
            [
                Entry("./", kind=tarfile.DIRTYPE),
                Entry("./etc/x", b"no"),
                Entry("./usr/bin/tool", content, mode=0o4755),
                Entry("./usr/lib/liba.so.1", b"lib", mode=0o666),
                Entry("./usr/lib/liba.so", kind=tarfile.SYMTYPE, target="liba.so.1"),
            ],
            compression=compression,
        ),
    )
    assert written == ["usr/bin/tool", "usr/lib/liba.so.1", "usr/lib/liba.so"]
    assert (target / "usr/bin/tool").read_bytes() == content
    assert (target / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755  # no setuid
    assert (target / "usr/lib/liba.so.1").stat().st_mode & 0o7777 == 0o644
    assert (target / "usr/lib/liba.so").readlink() == Path("liba.so.1")
    assert not (target / "etc").exists()


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("usr/../../evil", b"x")],
        [Entry("/usr/evil", b"x")],
        [Entry("usr/link", kind=tarfile.SYMTYPE, target="../../..")],
        [Entry("usr/link", kind=tarfile.SYMTYPE, target="/etc")],
        [Entry("usr/link", kind=tarfile.SYMTYPE, target="..")],
        [Entry("usr/d", b""), Entry("usr/link", kind=tarfile.SYMTYPE, target="d"), Entry("usr/link/x", b"x")],
        [Entry("usr/dev", kind=tarfile.CHRTYPE)],
        [Entry("usr/fifo", kind=tarfile.FIFOTYPE)],
        [Entry("usr/hard", kind=tarfile.LNKTYPE, target="usr/other")],
        [Entry("usr/twice", b"1"), Entry("usr/twice", b"2")],
        [Entry("usr/twice", kind=tarfile.SYMTYPE, target="x"), Entry("usr/twice", b"2")],
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises(BangerError) as caught:
        extract(tmp_path, make_deb(entries))
    assert caught.value.code is ErrorCode.IMAGE_INVALID
    assert {path.name for path in tmp_path.iterdir()} == {"x.deb", "out"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"!<arch>\n",
        b"not an archive at all",
        make_ar([("control.tar", b"")]),
        make_ar([("debian-binary", b"3.0\n"), ("data.tar", make_tar([]))]),
        make_ar([("debian-binary", b"2.0\n")]),
        make_ar([("debian-binary", b"2.0\n"), ("data.tar.lz", b"x")]),
        make_ar([("debian-binary", b"2.0\n"), ("data.tar.xz", b"x")]),
        make_ar([("debian-binary", b"2.0\n"), ("data.tar", b"x" * 700)]),
        make_ar([("debian-binary", b"2.0\n"), ("data.tar", make_tar([])), ("data.tar.gz", b"")]),
        make_ar([("debian-binary", b"2.0\n")] + [(f"x{n}", b"") for n in range(40)]),
        make_deb([Entry("usr/x", b"x" * 100_000)])[:-500],
    ],
)
def test_broken_packages_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BangerError) as caught:
        extract(tmp_path, content)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


@given(st.binary(max_size=300))
def test_any_bytes_are_members_or_a_clear_error(data: bytes) -> None:
    content = b"!<arch>\n" + data
    try:
        for member in deb.ar_members(io.BytesIO(content), length=len(content)):
            assert 0 <= member.offset <= member.offset + member.size <= len(content)
    except BangerError:
        pass


@given(st.text(max_size=60))
def test_safe_parts_never_escape(name: str) -> None:
    try:
        parts = deb.safe_parts(name)
    except BangerError:
        return
    assert Path("/base", *parts).is_relative_to("/base")
    assert ".." not in parts
