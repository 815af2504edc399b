"""`[[file_sync]]` from the host's side: what is read, what is left out and said, and what never happens."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.image import hostfiles
from banger.image.hostfiles import HostFiles, HostHome, Stopped, host_home
from banger.image.layertree import Folder, Inode, walk
from tests.capabilities import require

Read = Callable[..., Inode | None]


class Reader:
    """HostFiles over a spool, for a home; `files` is the last one used."""

    def __init__(self, spool: int, home: Path) -> None:
        self.spool = spool
        self.home = home
        self.files = self._make()

    def _make(
        self, uid: int | None = None, limit: int = 1 << 30, stop: threading.Event | None = None
    ) -> HostFiles:
        home = HostHome(str(self.home), uid)
        return HostFiles(home, self.spool, limit_bytes=limit, stop=stop or threading.Event())

    def __call__(
        self,
        host: str,
        *,
        mode: int | None = None,
        uid: int | None = None,
        limit: int = 1 << 30,
        stop: threading.Event | None = None,
    ) -> Inode | None:
        os.ftruncate(self.spool, 0)
        self.files = self._make(uid, limit, stop)
        return self.files.read(2, FileSync(host=host, guest="~/x", mode=mode))

    def content(self, inode: Inode | None) -> bytes:
        assert inode is not None
        return os.pread(self.spool, inode.size, inode.position)

    @property
    def warning(self) -> str:
        assert len(self.files.warnings) == 1, self.files.warnings
        return self.files.warnings[0]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def read(home: Path) -> Iterator[Reader]:
    with tempfile.TemporaryFile() as spool:
        yield Reader(spool.fileno(), home)


def test_a_file_is_roots_and_private_with_its_time(home: Path, read: Reader) -> None:
    (home / "a").write_bytes(b"content")
    os.chmod(home / "a", 0o777)
    os.utime(home / "a", (5, 77.9))
    for host in ("~/a", str(home / "a")):
        found = read(host)
        assert read.content(found) == b"content"
        assert found is not None
        assert (found.uid, found.gid, found.mode, found.mtime) == (0, 0, 0o600, 77)
        assert read.files.warnings == []
    changed = read("~/a", mode=0o755)
    assert changed is not None
    assert changed.mode == 0o755


def test_a_folder_comes_with_all_that_is_in_it(home: Path, read: Reader) -> None:
    (home / "d/deep/er").mkdir(parents=True)
    names = [b"plain", "größe".encode(), b"new\nline", b"\xff\xfe"]
    for name in names:
        Path(os.fsdecode(os.fsencode(home / "d/deep/er") + b"/" + name)).write_bytes(name)
    (home / "d/empty").touch()
    os.utime(home / "d", (1, 9))
    top = read("~/d", mode=0o640)
    assert isinstance(top, Folder)
    found = dict(walk(top))
    assert set(found) == {b"deep", b"deep/er", b"empty", *(b"deep/er/" + name for name in names)}
    assert {found[b"deep"].mode, found[b"deep/er"].mode, top.mode} == {0o755}
    assert top.mtime == 9
    assert all(read.content(found[b"deep/er/" + name]) == name for name in names)
    assert {found[b"deep/er/" + name].mode for name in names} == {0o640}
    assert read.files.warnings == []


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("~/none", "is not there"),
        ("~/none/below", "is not there"),
        ("~/file/below", "is not there"),
        ("~/link", "is a symlink"),
        ("~/out/passwd", "is reached through a symlink"),
        ("~/pipe", "is a pipe"),
        ("~/socket", "is a socket"),
        ("/dev/null", "is a device"),
        ("~/dir/../file", "contains .."),
    ],
)
def test_what_cannot_be_had_is_said_and_skipped(home: Path, read: Reader, host: str, why: str) -> None:
    (home / "file").touch()
    (home / "link").symlink_to("file")
    (home / "out").symlink_to("/etc")
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    assert read(host) is None
    assert read.warning.startswith(f"file_sync entry 2: '{host}' {why}")
    assert read.warning.endswith(": skipped")


def test_symlinks_and_special_files_in_folders_are_skipped(home: Path, read: Reader) -> None:
    (home / "d").mkdir()
    (home / "d/file").write_text("x")
    (home / "d/link").symlink_to("file")
    (home / "d/etc").symlink_to("/etc")
    os.mkfifo(home / "d/pipe")
    top = read("~/d")
    assert isinstance(top, Folder)
    assert set(top.children) == {b"file"}
    assert sorted(line.partition("'")[2] for line in read.files.warnings) == [
        "~/d/etc' is a symlink: skipped",
        "~/d/link' is a symlink: skipped",
        "~/d/pipe' is a pipe: skipped",
    ]


def test_many_warnings_are_counted(home: Path, read: Reader) -> None:
    (home / "d").mkdir()
    for number in range(20):
        (home / f"d/{number}").symlink_to("x")
    read("~/d")
    assert len(read.files.warnings) == hostfiles.MAX_WARNINGS + 1
    assert read.files.warnings[-1] == "file_sync entry 2: 15 more were skipped"


def test_a_hostile_name_is_escaped_in_the_warning(home: Path, read: Reader) -> None:
    (home / "d").mkdir()
    (home / "d/\x1b]0;x\x07\n").symlink_to("x")
    read("~/d")
    assert read.warning.isprintable()


def test_roots_daemon_reads_only_in_the_owners_home(tmp_path: Path, home: Path, read: Reader) -> None:
    (tmp_path / "secret").write_text("x")
    (home / "mine").write_text("x")
    me = os.getuid()
    assert read(str(tmp_path / "secret"), uid=me) is None
    assert "is not in the home of" in read.warning
    assert read("/etc/passwd", uid=me) is None
    assert read("~/mine", uid=me) is not None
    assert read(str(home / "mine"), uid=me) is not None
    (tmp_path / "home2").mkdir()
    (tmp_path / "home2/x").touch()
    assert read(str(tmp_path / "home2/x"), uid=me) is None, "a name that only begins as the home's does"


def test_roots_daemon_reads_nothing_of_others_for_an_owner(home: Path, read: Reader) -> None:
    """A hard link in one's home to what one may not read."""
    (home / "d").mkdir()
    (home / "d/file").write_text("x")
    other = os.getuid() + 1
    assert read("~/d/file", uid=other) is None
    assert "does not belong to" in read.warning
    assert read("~/d", uid=other) is None


@require("root")
def test_roots_daemon_takes_what_is_the_owners(home: Path, read: Reader) -> None:
    (home / "d").mkdir()
    (home / "d/theirs").write_text("x")
    (home / "d/roots").write_text("secret")
    for path in (home, home / "d", home / "d/theirs"):
        os.chown(path, 1, 1)
    top = read("~/d", uid=1)
    assert isinstance(top, Folder)
    assert set(top.children) == {b"theirs"}
    assert (top.uid, top.children[b"theirs"].uid) == (0, 0)
    assert "'~/d/roots' does not belong to" in read.warning


def test_whose_home_it_is() -> None:
    users = {"HOME": "/home/ann/"}
    assert host_home(None, users, euid=1000) == HostHome("/home/ann")
    assert host_home(0, users, euid=1000) == HostHome("/home/ann"), "a user's daemon knows one home"
    assert host_home(None, {"HOME": "/root"}, euid=0) == HostHome("/root", uid=0)
    assert host_home(0, {}, euid=0) == HostHome("/root", uid=0)
    assert host_home(0xFFFF_FFF0, {"HOME": "/root"}, euid=0) == HostHome("", uid=0xFFFF_FFF0)


def test_a_home_that_is_not_known_is_said(read: Reader) -> None:
    files = HostFiles(HostHome(""), read.spool, limit_bytes=1, stop=threading.Event())
    assert files.read(1, FileSync(host="~/x", guest="~/x")) is None
    assert files.warnings == ["file_sync entry 1: '~/x' is in a home that is not known: skipped"]


def test_what_does_not_fit_is_named_before_it_is_read(home: Path, read: Reader) -> None:
    (home / "d").mkdir()
    with open(home / "d/big", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        BangerError, match=r"^file_sync entry 2: '~/d/big' \(1073741824 KiB\) does not fit"
    ) as e:
        read("~/d", limit=1 << 30)
    assert e.value.code is ErrorCode.NO_SPACE
    assert os.fstat(read.spool).st_size == 0


def test_more_files_than_any_home_has_are_refused(
    home: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfiles, "MAX_ENTRIES", 3)
    (home / "d").mkdir()
    for number in range(4):
        (home / f"d/{number}").touch()
    with pytest.raises(BangerError, match="one file too many: 3 are synced"):
        read("~/d")


def test_folders_without_end_are_cut(home: Path, read: Reader) -> None:
    (home / "/".join(["d"] * (hostfiles.MAX_DEPTH + 3))).mkdir(parents=True)
    top = read("~/d")
    assert isinstance(top, Folder)
    assert len(list(walk(top))) == hostfiles.MAX_DEPTH - 1
    assert f"is more than {hostfiles.MAX_DEPTH} folders deep" in read.warning


def test_a_file_of_no_length_is_never_read(read: Reader) -> None:
    """Such as those of /proc, which would tell of the daemon, or wait for ever."""
    found = read(f"/proc/{os.getpid()}/environ")
    assert found is not None
    assert found.size == 0


def test_a_file_that_shrinks_is_what_is_left_of_it(
    home: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a").write_bytes(b"x" * 10)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: real(fd, min(count, 4), at) if at < 4 else b"")
    found = read("~/a")
    monkeypatch.undo()
    assert read.content(found) == b"xxxx"


def test_a_symlink_put_in_its_place_meanwhile_is_not_followed(
    tmp_path: Path, home: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    (home / "a").write_text("mine")
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if stat.S_ISREG(found.st_mode) and not (home / "a").is_symlink():
            (home / "a").unlink()
            (home / "a").symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    assert read.content(read("~/a")) == b"mine"


def test_an_unreadable_file_is_said(home: Path, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "a").write_text("x")
    real = os.open

    def refused(path: str, flags: int, *more: int, dir_fd: int | None = None) -> int:
        if path.startswith("/proc/self/fd/"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refused)
    assert read("~/a") is None
    assert "cannot be read (Permission denied)" in read.warning


def test_a_caller_that_is_gone_ends_it(home: Path, read: Reader) -> None:
    (home / "a").write_text("x")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        read("~/a", stop=stop)


@given(st.lists(st.sampled_from(["a", "up", "out", "etc", "..", ".", "", "passwd", "x"]), max_size=6))
def test_no_path_leads_out_of_the_home(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    top = tmp_path_factory.getbasetemp() / "anywhere"
    home = top / "home"
    if not home.exists():
        (home / "a/x").mkdir(parents=True)
        (home / "a/up").symlink_to("..")
        (home / "up").symlink_to("../..")
        (home / "out").symlink_to("/")
        (home / "a/x/a").write_text("in")
        (top / "x").write_text("out")
    before = set(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryFile() as spool:
        files = HostFiles(
            HostHome(str(home), uid=os.getuid()),
            spool.fileno(),
            limit_bytes=1 << 20,
            stop=threading.Event(),
        )
        for start in ("~", str(home), "", str(top)):
            files.read(1, FileSync(host=f"{start}/{'/'.join(parts)}", guest="~/x"))
        assert set(spool.read().split(b"in")) <= {b""}
    assert set(os.listdir("/proc/self/fd")) <= before | {str(max(map(int, before)) + 1)}
