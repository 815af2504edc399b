"""Layers into one tree: what hides, replaces and links what, and which images are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.image import flatten as flat
from banger.image import rootfs, treetar
from banger.image.oci.manifest import OCI_LAYER, Layer

Member = tuple[tarfile.TarInfo, bytes]
Found = dict[str, tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int = 0o755, **fields: object) -> Member:
    return member(name, b"", type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def link(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def plain(data: bytes) -> bytes:
    return data


def fast(data: bytes) -> bytes:
    return gzip.compress(data, 1)


@dataclass
class Images:
    """Layers as files below a folder."""

    home: Path
    count: int = 0

    def layer(self, data: bytes, pack: Callable[[bytes], bytes] = plain) -> Layer:
        packed = pack(data)
        self.count += 1
        path = self.home / f"blob{self.count}"
        path.write_bytes(packed)
        return Layer(
            digest=f"sha256:{hashlib.sha256(packed).hexdigest()}",
            diff_id=f"sha256:{hashlib.sha256(data).hexdigest()}",
            media_type=OCI_LAYER,
            size=len(packed),
            path=path,
        )

    def flatten(self, *layers: Sequence[Member] | bytes, limits: flat.Limits = flat.LIMITS) -> Found:
        made = [self.layer(data if isinstance(data, bytes) else tar(*data)) for data in layers]
        return self.read(made, limits=limits)

    def read(self, layers: Sequence[Layer], *, limits: flat.Limits = flat.LIMITS) -> Found:
        out = io.BytesIO()
        result = flat.flatten(layers, out, work=self.home, limits=limits)
        assert result.length == len(out.getvalue())
        return contents(out.getvalue())

    def refused(self, *layers: Sequence[Member] | bytes, limits: flat.Limits = flat.LIMITS) -> str:
        """The refusal, and nothing is left: no file, no thread, no descriptor."""
        made = [self.layer(data if isinstance(data, bytes) else tar(*data)) for data in layers]
        before = (set(self.home.iterdir()), set(os.listdir("/proc/self/fd")), threading.active_count())
        with pytest.raises(BangerError) as caught:
            flat.flatten(made, io.BytesIO(), work=self.home, limits=limits)
        after = (set(self.home.iterdir()), set(os.listdir("/proc/self/fd")), threading.active_count())
        assert before == after
        assert any(layer.digest in caught.value.brief for layer in made)
        return caught.value.brief


def contents(data: bytes) -> Found:
    """Keyed by name; a name that comes twice, a missing parent or a link before its target is an error."""
    found: Found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            assert name not in found
            parent = name.rpartition("/")[0] or "."
            assert name == "." or found[parent][0].isdir()
            if info.islnk():
                target = found[info.linkname.removeprefix("./")][0]
                assert (target.mode, target.uid, target.mtime) == (info.mode, info.uid, info.mtime)
            file = archive.extractfile(info) if info.isreg() else None
            found[name] = (info, file.read() if file else b"")
    return found


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def names(found: Found) -> set[str]:
    return set(found) - {"."}


def test_everything_of_an_entry_arrives(images: Images) -> None:
    binary = b"\x01\0\0\x02\xff\n=".decode("utf-8", "surrogateescape")
    found = images.flatten(
        [
            folder("./", 0o1711, uid=5),
            folder("usr/", 0o2755),
            member("usr/sudo", b"x" * 5000, mode=0o4755, uid=7, gid=3_000_000, mtime=12.75, uname="daemon"),
            member("old", mtime=-1.5),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("disk", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000),
            member("pipe", type=tarfile.FIFOTYPE, mode=0o600),
            symlink("s", "/usr/../../sudo"),
            symlink("long", "l" * 300),
            member("d/" * 100 + "n" * 200, b"deep"),
            member("no-utf8-\udcff\n", b"raw"),
            member("ping", b"p", pax_headers={"SCHILY.xattr.security.capability": binary}),
            member("note", pax_headers={"LIBARCHIVE.xattr.user.a%20b": "aGk="}),
            member(
                "gone", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.com.x": "y"}
            ),
        ]
    )
    assert (found["."][0].mode, found["."][0].uid) == (0o1711, 5)
    assert found["usr"][0].mode == 0o2755
    info, content = found["usr/sudo"]
    assert (info.mode, info.uid, info.gid, info.mtime, info.uname) == (0o4755, 7, 3_000_000, 12, "")
    assert content == b"x" * 5000
    assert found["old"][0].mtime == -2
    assert (found["null"][0].devmajor, found["null"][0].devminor) == (1, 3)
    assert (found["disk"][0].devmajor, found["disk"][0].devminor) == (259, 70_000)
    assert found["pipe"][0].isfifo()
    assert found["s"][0].linkname == "/usr/../../sudo"
    assert found["long"][0].linkname == "l" * 300
    assert found["d/" * 100 + "n" * 200][1] == b"deep"
    assert found["no-utf8-\udcff\n"][1] == b"raw"
    assert found["ping"][0].pax_headers["SCHILY.xattr.security.capability"] == binary
    assert found["note"][0].pax_headers["SCHILY.xattr.user.a b"] == "hi"
    assert not [key for key in found["gone"][0].pax_headers if "xattr" in key]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_of_every_form(images: Images, form: int) -> None:
    name = "a" * 90 + "/" + "b" * 200
    found = images.flatten(tar(member(name, b"x", uid=1 << 30), link("l", name), form=form))
    assert found[name][1] == b"x" or found["l"][1] == b"x"
    assert found[name][0].uid == 1 << 30
    short = "a" * 90 + "/" + "b" * 90
    assert images.flatten(tar(member(short, b"y"), form=tarfile.USTAR_FORMAT))[short][1] == b"y"


def test_whiteouts(images: Images) -> None:
    found = images.flatten(
        [member("a"), folder("d"), member("d/x"), member("d/y"), folder("o"), folder("o/p"), member("o/p/q")],
        [member(".wh.a"), member("d/.wh.x"), member("o/new"), member("o/.wh..wh..opq"), member(".wh.never")],
        [member("none/.wh.z"), member(".wh..wh.plnk"), member("a/b")],
    )
    assert names(found) == {"d", "d/y", "o", "o/new", "a", "a/b"}


def test_a_whiteout_spares_its_own_layer(images: Images) -> None:
    lower = [folder("d"), member("d/old"), folder("d/e"), member("d/e/old"), member("f", b"old")]
    for upper in (
        [member("f", b"new"), member(".wh.f"), folder("d"), member("d/e/new"), member(".wh.d")],
        [member(".wh.f"), member("f", b"new"), member(".wh.d"), folder("d"), member("d/e/new")],
    ):
        found = images.flatten(lower, upper)
        assert names(found) == {"f", "d", "d/e", "d/e/new"}
        assert found["f"][1] == b"new"


def test_an_emptied_folder_goes_with_its_parent(images: Images) -> None:
    lower = [member("a/b/c/d")]
    found = images.flatten(lower, [member("a/b/c/.wh..wh..opq"), member("a/b/.wh..wh..opq"), member("x")])
    assert names(found) == {"a", "a/b", "x"}
    assert names(images.flatten(lower, [member("a/b/c/.wh..wh..opq"), member(".wh.a")])) == set()


def test_hard_links_over_layers(images: Images) -> None:
    found = images.flatten(
        [member("a", b"A", mode=0o4755, uid=3), member("b", b"B"), symlink("s", "x")],
        [link("a2", "a"), link("/a3", "./a2"), link("b2", "b"), link("s2", "s")],
        [member(".wh.a"), member("b", b"new")],
    )
    one = [found[name] for name in ("a2", "a3")]
    assert sorted(info.islnk() for info, _ in one) == [False, True]
    assert {content for info, content in one if info.isreg()} == {b"A"}
    assert all((info.mode, info.uid) == (0o4755, 3) for info, _ in one)
    assert (found["b"][1], found["b2"][1]) == (b"new", b"B")
    assert {found["s"][0].type, found["s2"][0].type} == {tarfile.SYMTYPE, tarfile.LNKTYPE}
    again = images.flatten([member("a", b"A"), link("a", "a"), link("b", "a"), link("b", "a")])
    assert names(again) == {"a", "b"}


def test_types_replace_each_other(images: Images) -> None:
    found = images.flatten(
        [
            folder("d"),
            member("d/below"),
            member("f"),
            folder("t"),
            member("t/x"),
            folder("keep"),
            member("keep/x"),
        ],
        [member("d", b"file now"), folder("f"), member("f/in"), symlink("t", "d"), folder("keep", 0o700)],
    )
    assert names(found) == {"d", "f", "f/in", "t", "keep", "keep/x"}
    assert found["d"][1] == b"file now"
    assert found["t"][0].issym()
    assert found["keep"][0].mode == 0o700


def test_the_last_of_a_layer_wins(images: Images) -> None:
    found = images.flatten([member("a", b"1"), folder("d", 0o700), member("a", b"2"), folder("d", 0o711)])
    assert found["a"][1] == b"2"
    assert found["d"][0].mode == 0o711


def test_paths_lead_through_symlinks_of_the_image(images: Images) -> None:
    found = images.flatten(
        [
            folder("usr/lib"),
            symlink("lib", "usr/lib"),
            symlink("abs", "/lib/sub"),
            symlink("up", "../../../usr"),
        ],
        [member("lib/a"), member("abs/b"), member("up/c"), member("/up//./lib/d"), link("hard", "lib/a")],
        [member("lib/.wh.d"), symlink("away", "/not/there"), member("away/e")],
    )
    assert names(found) == {
        *("usr", "usr/lib", "lib", "abs", "up", "usr/lib/a", "usr/lib/sub", "usr/lib/sub/b", "usr/c", "hard"),
        *("away", "not", "not/there", "not/there/e"),
    }


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, plain])
def test_every_compression(images: Images, pack: Callable[[bytes], bytes]) -> None:
    big = os.urandom(300_000)
    first = images.layer(tar(member("a", b"a" * 3_000_000), member("b", big)), pack)
    second = images.layer(tar(member("c", big[::-1])), pack)
    found = images.read([first, second])
    assert (found["a"][1], found["b"][1], found["c"][1]) == (b"a" * 3_000_000, big, big[::-1])


def test_into_a_file_and_on_through_rewrite(images: Images, tmp_path: Path) -> None:
    big = os.urandom(500_000)
    layer = images.layer(tar(member("root/.profile", b"p"), member("a", big), link("b", "a")), gzip.compress)
    heard: list[int] = []
    with (tmp_path / "out").open("w+b") as out:
        out.write(b"before")
        flat.flatten([layer], out, work=tmp_path, heard=heard.append)
        out.seek(6)
        rootfs.rewrite(out, tmp_path / "root.tar", tmp_path / "seed.tar")
    found = contents((tmp_path / "root.tar").read_bytes())
    assert (names(found), found["a"][1]) == ({"root", "a", "b"}, big)
    assert heard


def test_memory_does_not_grow_with_the_content(images: Images, tmp_path: Path) -> None:
    peaks: list[int] = []
    for mib in (4, 96):
        layer = images.layer(tar(*(member(f"f{n}", bytes(mib << 18)) for n in range(4))), fast)
        tracemalloc.start()
        try:
            with (tmp_path / "out").open("wb") as out:
                flat.flatten([layer], out, work=tmp_path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 24 << 20
    assert peaks[1] - peaks[0] < 16 << 20


@pytest.mark.limit(300)
def test_memory_grows_with_entries_by_less_than_a_kib_each(images: Images) -> None:
    held: list[int] = []
    for count in (5_000, 10_000):
        layer = images.layer(tar(*(member(f"folder/some-name-{n:08}", b"x") for n in range(count))))
        tracemalloc.start()
        try:
            with flat.FlatTree([layer], work=images.home) as tree:
                tree.measure()
                held.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert held[1] - held[0] < 5_000 * 1024


def test_a_blob_that_shrinks_is_an_error(images: Images) -> None:
    layer = images.layer(tar(member("a", b"x" * 300_000)))
    with flat.FlatTree([layer], work=images.home) as tree:
        os.truncate(layer.path, 1000)
        with pytest.raises(OSError, match="become shorter"):
            treetar.write_tree(tree.tree.root, io.BytesIO())


def test_what_says_nothing_is_ignored(images: Images) -> None:
    """A global header, and whatever follows the end, as Go's reader has it. A 0:0 device is a device."""
    data = tar(member("a", b"a"), member("w", type=tarfile.CHRTYPE))
    general = tarfile.TarInfo.create_pax_global_header({"path": "b", "size": "7"})
    found = images.flatten(general + data + tar(member("c")))
    assert names(found) == {"a", "w"}
    assert found["w"][0].ischr()


def test_no_layer_is_an_empty_image(images: Images) -> None:
    assert names(images.flatten()) == set()
    assert names(images.flatten(b"", bytes(1024))) == set()


def test_a_diff_id_that_is_another(images: Images) -> None:
    layer = images.layer(tar(member("a")), gzip.compress)
    other = Layer(
        digest=layer.digest, diff_id="sha256:" + "0" * 64, media_type="", size=layer.size, path=layer.path
    )
    with pytest.raises(BangerError, match="diff_id is another"):
        images.read([other])


def broken(data: bytes, position: int, new: bytes) -> bytes:
    """The first header with other bytes in it, and a checksum that fits."""
    head = bytearray(data[:512])
    head[position : position + len(new)] = new
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


ONE = tar(member("evil", b"x" * 600))


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([member("a/../../b")], "entry 'a/../../b': a path with \"..\""),
        ([member("..")], 'a path with ".."'),
        ([member("x" * 256)], "a name of more than 255 bytes"),
        ([member("x/" * 2500)], "a path of 5000 bytes"),
        ([link("h", "nothing")], "entry 'h': a hard link to 'nothing', which is not there"),
        ([link("h", "../etc/shadow")], 'a hard link to a path with ".."'),
        ([folder("d"), link("h", "d")], "which is a folder"),
        ([member("f"), member("f/below")], "entry 'f/below': an entry below 'f', which is no folder"),
        ([symlink("a", "b"), symlink("b", "a"), member("a/x")], "a loop of symlinks"),
        ([symlink("s", "")], "a symlink to a path of 0 bytes"),
        ([symlink("s", "x" * 5000)], "a symlink to a path of 5000 bytes"),
        ([member(".wh.")], "a whiteout of nothing"),
        ([member("d/.wh...")], "a whiteout of nothing"),
        ([member("./")], "the root is no folder"),
        ([member("\x1b[2Jevil\u202e", uid=1 << 40)], "entry '\\x1b[2Jevil\\u202e': an owner"),
        ([member("c", type=tarfile.CHRTYPE, devmajor=5000)], "a device 5000:0"),
        ([member("g", pax_headers={"LIBARCHIVE.xattr.user.a": "!"})], "a broken extended attribute"),
        ([member("g", pax_headers={"SCHILY.xattr.user.a": "x" * 5000})], "more extended attributes"),
        ([member("g", pax_headers={"SCHILY.xattr.user." + "x" * 300: ""})], "attribute with a name"),
        ([member("g", pax_headers={"comment": "x" * (2 << 20)})], "an extended header of"),
        ([member("g", pax_headers={"path": "a\0b"})], "a name with a zero byte"),
        ([member("t", type=b"V")], "an entry of unknown type b'V'"),
        ([member("g", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "7"})], "unknown format"),
    ],
)
def test_hostile_entries_are_refused(images: Images, members: list[Member], says: str) -> None:
    assert says in images.refused([member("there")], members)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (ONE[:300], "middle of a header"),
        (ONE[:1000], "entry 'evil': the archive ends in the middle of its content"),
        (ONE[:20] + b"X" + ONE[21:], "wrong checksum"),
        (broken(ONE, 124, b"-0000000012\0"), "entry 'evil': a header with a number that is none"),
        (broken(ONE, 124, b"\xff" * 12), "number that cannot be"),
        (broken(ONE, 124, b"\x80" + b"\x7f" * 11), "number that cannot be"),
        (broken(ONE, 108, b"0_000007"), "number that is none"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed in a way"),
        (tar(member("a", pax_headers={"x": "y"}))[:1024], "after an extended header"),
        (b"\x1f\x8b" + bytes(600), "not valid gzip"),
    ],
)
def test_broken_tars_are_refused(images: Images, data: bytes, says: str) -> None:
    assert says in images.refused(data)


def test_bombs_are_refused(images: Images) -> None:
    tight = flat.Limits(entries=3, unpacked=2 << 20, ratio=50, ratio_from=1 << 20, index=2000, steps=50)
    assert "entry 'd': more than 3 entries" in images.refused([member(name) for name in "abcd"], limits=tight)
    assert "than an image can have" in images.refused([member("a/b/c/d/e")], limits=tight)
    assert "longer together" in images.refused(
        [member("a", pax_headers={"SCHILY.xattr.user.a": "x" * 2100})], limits=tight
    )
    zeros = images.layer(tar(member("z", bytes((1 << 20) + 5000))), gzip.compress)
    with pytest.raises(BangerError, match="more than 50 times its size"):
        images.read([zeros], limits=tight)
    with pytest.raises(BangerError, match="more than 2 MiB"):
        images.read(
            [images.layer(tar(member("z", bytes(4 << 20))), zstd.compress)],
            limits=flat.Limits(unpacked=2 << 20),
        )
    maze = [symlink("s", "/".join(["."] * 10 + ["a", ".."] * 30)), folder("a"), member("s/x")]
    assert "symlinks on the way" in images.refused(maze, limits=tight)


def test_paths_that_symlinks_make_too_long(images: Images) -> None:
    deep = "/".join(["d" * 200] * 19)
    long = [folder(deep), symlink("s", deep), member("s/" + "/".join(["e" * 200] * 10))]
    assert "a path of" in images.refused(long)


def sparse(form: str) -> bytes:
    """b"one" at 1000 of 5000 bytes, as GNU tar writes it."""
    if form == "old":
        head = bytearray(tar(member("f", b"one"), form=tarfile.GNU_FORMAT))
        head[386:410] = b"%011o\0%011o\0" % (1000, 3)
        head[410:434] = b"%011o\0%011o\0" % (5000, 0)
        head[483:495] = b"%011o\0" % 5000
        return broken(bytes(head), 156, b"S")
    headers = {"GNU.sparse.size": "5000", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "1000,3"}
    content = b"one"
    if form == "1.0":
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5000"}
        content = b"2\n1000\n3\n5000\n0\n".ljust(512, b"\0") + b"one"
    headers["GNU.sparse.name"] = "f"
    return tar(member("GNUSparseFile.0/f", content, pax_headers=headers), member("after", b"x"))


@pytest.mark.parametrize("form", ["old", "0.1", "1.0"])
def test_sparse_files(images: Images, form: str) -> None:
    found = images.flatten(sparse(form))
    assert found["f"][1] == bytes(1000) + b"one" + bytes(3997)
    tight = flat.Limits(unpacked=12_000)
    assert "of content" in images.refused(sparse(form), limits=tight)


@given(st.binary(max_size=1600), st.sampled_from([plain, gzip.compress]))
def test_any_bytes_are_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, pack: Callable[[bytes], bytes]
) -> None:
    images = Images(tmp_path_factory.getbasetemp())
    try:
        images.read([images.layer(data, pack)])
    except BangerError:
        pass


@given(st.integers(0, 511), st.binary(min_size=1, max_size=20), st.sampled_from(["old", "1.0", "0.1", "x"]))
def test_any_header_is_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, new: bytes, which: str
) -> None:
    images = Images(tmp_path_factory.getbasetemp())
    data = tar(folder("d"), symlink("d/s", ".."), link("h", "d/s")) if which == "x" else sparse(which)
    try:
        images.read([images.layer(broken(data, position, new[: 512 - position]))])
    except BangerError:
        pass
