"""A guest's tar as files: what is harmless arrives as it was, and nothing else, and nowhere else."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.workspace import stagetree
from banger.workspace.errors import WorkNotKept
from banger.workspace.stage import unpack
from tests.unit.workspace.hostiletar import Entry, folder, hard_link, symlink, tar_of

pytestmark = pytest.mark.anyio


class Place:
    """A folder to unpack into, and what must stay as it is beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "staging"
        self.folder.mkdir()
        self.outside = path / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"mine")
        self.tree = self.folder / "tree"

    async def unpack(self, tar: bytes, *, most_bytes: int = 1 << 30) -> tuple[str, ...]:
        with tempfile.TemporaryFile(dir=self.path, buffering=0) as file:
            file.write(tar)
            tree, notes = await unpack(file.fileno(), str(self.folder), most_bytes=most_bytes)
        assert tree == str(self.tree)
        self.check()
        return notes

    def check(self) -> None:
        assert sorted(os.listdir(self.path)) == ["outside", "staging"]
        assert os.listdir(self.outside) == ["file"]
        assert (self.outside / "file").read_bytes() == b"mine"
        assert os.listdir(self.folder) == ["tree"]
        for where, folders, files in os.walk(self.tree):
            for name in (*folders, *files):
                mode = os.lstat(os.path.join(where, name)).st_mode
                assert stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)
                if not stat.S_ISLNK(mode):
                    assert not mode & 0o7000
                    assert not mode & 0o022

    def names(self) -> set[str]:
        return {str(path.relative_to(self.tree)) for path in self.tree.rglob("*")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    previous = os.umask(0)  # whatever the daemon's is
    yield Place(tmp_path)
    os.umask(previous)


async def test_files_folders_and_links_arrive(place: Place) -> None:
    big = os.urandom(3 << 20)
    notes = await place.unpack(
        tar_of(
            [
                folder("."),
                folder("./src"),
                Entry("./src/a", content=b"a"),
                Entry("./src/run", content=b"#!", mode=0o4755),
                Entry("./src/closed", content=b"c", mode=0),
                Entry("./big", content=big),
                hard_link("./again", "./src/a"),
                symlink("./link", "/etc/passwd"),
                symlink("./dangling", "nowhere/at/all"),
                Entry("./without/its/folder", content=b"f"),
                Entry("./caf\udce9", content=b"latin"),
                Entry("./" + "d" * 90 + "/" + "e" * 90, content=b"long"),
            ]
        )
    )
    assert notes == ()
    tree = place.tree
    assert (tree / "src/a").read_bytes() == (tree / "again").read_bytes() == b"a"
    assert (tree / "src/a").stat().st_ino != (tree / "again").stat().st_ino
    assert (tree / "big").read_bytes() == big
    assert os.readlink(tree / "link") == "/etc/passwd"
    assert (tree / "without/its/folder").read_bytes() == b"f"
    assert (tree / "caf\udce9").read_bytes() == b"latin"
    modes = {name: stat.S_IMODE((tree / name).stat().st_mode) for name in ("src", "src/a", "src/run")}
    assert modes == {"src": 0o700, "src/a": 0o644, "src/run": 0o755}
    assert stat.S_IMODE((tree / "src/closed").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([Entry("../up", content=b"x")], "leads out"),
        ([Entry("a/../../up", content=b"x")], "leads out"),
        ([Entry("/etc/up", content=b"x")], "leads out"),
        ([symlink("out", "../../outside"), Entry("out/file", content=b"x")], "below a file"),
        ([symlink("out", "../../outside"), folder("out")], "twice"),
        ([Entry("x", content=b"1"), Entry("x", content=b"2")], "twice"),
        ([symlink("x", "../../outside/file"), Entry("x", content=b"2")], "twice"),
        ([hard_link("x", "../../outside/file")], "hard link to nothing"),
        ([hard_link("x", "x")], "hard link to nothing"),
        ([folder("f"), hard_link("x", "f")], "hard link to nothing"),
        ([Entry("x", tarfile.FIFOTYPE)], "A pipe"),
        ([Entry("x", tarfile.CHRTYPE)], "A device"),
        ([Entry("n" * 256)], "too long"),
        ([Entry("/".join(["n" * 200] * 20))], "too long"),
        ([Entry("/".join(["n"] * 300))], "too deep"),
        ([Entry(".GIT/hooks/post-index-change")], "cannot track"),
        ([Entry("sub/git~1/config")], "cannot track"),
        ([Entry(".git /config")], "cannot track"),
        ([Entry(".g\u200cit/config")], "cannot track"),
        ([symlink(".gitmodules", "/etc/passwd")], "cannot track"),
        ([symlink(".git", "../outside")], "symlink"),
        ([folder("sub/.git"), symlink("sub/.git/objects", "/etc")], "symlink"),
        ([Entry(f".git/objects/ab/{'c' * 38}")], "never reached the disk"),
        ([Entry(".git/objects/info/alternates", content=b"/etc")], "borrows"),
        ([Entry("x\x1b[31m\n/../y")], "leads out"),
    ],
)
async def test_what_is_harmful_is_left_out(place: Place, entries: list[Entry], why: str) -> None:
    notes = await place.unpack(tar_of([*entries, Entry("good", content=b"good")]))
    assert (place.tree / "good").read_bytes() == b"good"
    assert len(notes) == 1
    assert why in notes[0]
    assert notes[0].isprintable()
    assert not list(place.tree.rglob("up"))


async def test_what_a_git_folder_does_not_need_is_left_out(place: Place) -> None:
    pack = f"pack-{'a' * 40}"
    kept = [".git/HEAD", f".git/objects/pack/{pack}.pack", ".git/refs/heads/hooks", "hooks/x", ".gitignore"]
    kept += [".git/refs/heads/tmp_x", f".git/objects/aa/{'b' * 38}", ".github/x", "gitk", "x.lock"]
    useless = [".git/hooks/pre-commit", f".git/objects/pack/{pack}.idx", ".git/index.lock"]
    useless += [".git/objects/info/packs", ".git/objects/pack/tmp_pack_x", ".git/objects/aa/tmp_obj_x"]
    notes = await place.unpack(tar_of(Entry(name, content=b"x") for name in (*kept, *useless)))
    assert notes == ()
    assert {name for name in place.names() if (place.tree / name).is_file()} == set(kept)


async def test_holes_stay_holes(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both as the agent sends them (pax 1.0) and where the tar itself has the hole."""
    head = tarfile.TarInfo("sparse")
    head.size = 1 << 30
    header = head.tobuf(format=tarfile.GNU_FORMAT)
    path = tmp_path_factory.mktemp("tar") / "tar"
    with path.open("wb") as file:
        file.write(header)
        file.seek((1 << 30) - 3, os.SEEK_CUR)
        file.write(b"end")
        file.write(bytes(1024))
    with path.open("rb") as tar:
        await unpack(tar.fileno(), str(place.folder), most_bytes=1 << 31)
    made = (place.tree / "sparse").stat()
    assert made.st_size == 1 << 30
    assert made.st_blocks * 512 < 1 << 20
    with (place.tree / "sparse").open("rb") as read:
        read.seek(-3, os.SEEK_END)
        assert read.read() == b"end"


async def test_too_much_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("a", content=bytes(600)), hard_link("b", "a")]
    with pytest.raises(WorkNotKept, match="MiB"):
        await place.unpack(tar_of(entries), most_bytes=1000)
    monkeypatch.setattr(stagetree, "MAX_ENTRIES", 2)
    (place.tree / "a").unlink()
    place.tree.rmdir()
    with pytest.raises(WorkNotKept, match="more than 2 files"):
        await place.unpack(tar_of([Entry("a/b/c")]))
    monkeypatch.setattr(stagetree, "MAX_INDEX_BYTES", 10)
    with pytest.raises(WorkNotKept, match="names are longer"):
        await place.unpack(tar_of([Entry("name-of-some-length")]))


@pytest.mark.parametrize(
    "tar", [b"x" * 512, tar_of([Entry("a", content=b"x" * 2000)])[:1500], tar_of([Entry(".")])]
)
async def test_no_archive_is_an_error(place: Place, tar: bytes) -> None:
    with pytest.raises(WorkNotKept):
        await place.unpack(tar)


NAMES = st.lists(
    st.sampled_from(["a", "b", "..", ".", ".git", "", "/", "out", "c\n", "hooks", "objects", "é", "\udcff"]),
    max_size=4,
).map("/".join)
TARGETS = st.sampled_from(["../../outside", "/", "a", "..", "out", "a/b", ".git", "../outside/file"])
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
ENTRIES = st.lists(st.builds(Entry, NAMES, KINDS, st.just(b""), TARGETS, st.integers(0, 0o7777)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(entries=ENTRIES, flipped=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), max_size=3))
async def test_nothing_ever_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], flipped: list[tuple[int, int]]
) -> None:
    place = Place(tmp_path_factory.mktemp("any"))
    tar = bytearray(tar_of(entries))
    for at, byte in flipped:
        tar[at % len(tar)] = byte
    try:
        await place.unpack(bytes(tar))
    except BangerError:
        return
