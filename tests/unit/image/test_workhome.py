"""The user's part of a new work disk, as mke2fs is given it."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.image import seeds
from banger.image.hostfiles import HostHome
from banger.image.initramfs import GuestFile
from banger.image.workhome import UsersPart, git_config, make_users_disk
from banger.system import ext4
from banger.system.ext4 import E2fsprogs

pytestmark = pytest.mark.anyio

OWN = (
    GuestFile(path=".ssh/authorized_keys", content=b"bangers\n", mode=0o600),
    GuestFile(path=".hushlogin", content=b"", mode=0o644),
)
SIZE = 16 << 20
Make = Callable[..., Awaitable[tuple["Disk", tuple[str, ...]]]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


def write_seed(path: Path, *entries: tuple[str, bytes, str]) -> Path:
    """(name, content, symlink's target or "")."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for name, content, target in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if target:
                info.type, info.linkname = tarfile.SYMTYPE, target
            out.addfile(info, io.BytesIO(content))
    seeds.prepare(path, rootfs="", key="k", files=OWN)
    return path


class Disk:
    """What mke2fs was given."""

    def __init__(self, content: bytes) -> None:
        self._archive = tarfile.TarFile(fileobj=io.BytesIO(content))
        self.entries = {info.name.removeprefix("./"): info for info in self._archive}

    def cat(self, name: str) -> bytes:
        file = self._archive.extractfile(self.entries[name])
        assert file is not None
        return file.read()

    def mode(self, name: str) -> int:
        return self.entries[name].mode


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make_users_disk with a mke2fs that takes what fills no more than half of the disk."""
    given: list[bytes] = []

    async def make_ext4(path: Path, *, size_bytes: int, tar: int, **_more: object) -> None:
        path.touch()
        content = b""
        while chunk := await asyncio.to_thread(os.read, tar, 1 << 20):
            content += chunk
            if len(content) > size_bytes // 2:  # and the rest is never read
                raise BangerError(ErrorCode.NO_SPACE, "the content does not fit")
        given.append(content)

    async def make(part: UsersPart, seed: Path) -> tuple[Disk, tuple[str, ...]]:
        before = seed.read_bytes()
        disk = tmp_path / "work.ext4"
        said = await make_users_disk(disk, size_bytes=SIZE, seed=seed, part=part, programs=E2fsprogs())
        assert seed.read_bytes() == before
        assert disk.exists()
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        return Disk(given[-1]), said

    monkeypatch.setattr(ext4, "make", make_ext4)
    return make


async def test_files_and_folders_lie_where_they_were_asked(tmp_path: Path, home: Path, make: Make) -> None:
    (home / "notes").write_bytes(b"n" * 300_000)
    os.utime(home / "notes", (1, 1_000_000_000))
    (home / "tree/bin").mkdir(parents=True)
    (home / "tree/bin/tool").write_text("#!/bin/sh\n")
    (home / "tree/link").symlink_to("bin")
    seed = write_seed(
        tmp_path / "seed.tar",
        ("./.profile", b"the image's", ""),
        ("./cfg/old", b"o", ""),
        ("./to", b"", "/etc"),
    )
    part = UsersPart(
        HostHome(str(home)),
        (
            FileSync(host="~/notes", guest="~/.profile"),
            FileSync(host="~/tree", guest="~/cfg", mode=0o755),
            FileSync(host="~/none", guest="~/none"),
            FileSync(host="~/notes", guest="~/to/passwd", mode=0o444),
        ),
        git_name="Ann",
        git_email="ann@example.org",
    )
    disk, said = await make(part, seed)
    assert disk.cat(".profile") == b"n" * 300_000
    profile = disk.entries[".profile"]
    assert (profile.mode, profile.uid, profile.gid, profile.mtime) == (0o600, 0, 0, 1_000_000_000)
    assert disk.cat("cfg/old") == b"o"
    assert disk.mode("cfg/bin/tool") == 0o0755
    assert disk.mode("cfg/bin") == 0o0755
    assert disk.entries["to"].isdir()
    assert disk.mode("to/passwd") == 0o0444
    assert disk.cat(".ssh/authorized_keys") == b"bangers\n"
    assert disk.cat(".gitconfig") == b'[user]\n\tname = "Ann"\n\temail = "ann@example.org"\n'
    assert said == (
        "file_sync entry 2: '~/tree/link' is a symlink: skipped",
        "file_sync entry 3: '~/none' is not there: skipped",
    )


async def test_bangers_key_stays(tmp_path: Path, home: Path, make: Make) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/authorized_keys").write_text("the user's")
    (home / ".ssh/config").write_text("Host x\n")
    (home / "file").touch()
    seed = write_seed(tmp_path / "seed.tar")
    part = UsersPart(
        HostHome(str(home)),
        (
            FileSync(host="~/.ssh", guest="~/.ssh"),
            FileSync(host="~/file", guest="~/.ssh/authorized_keys"),
            FileSync(host="~/file", guest="~/.ssh"),
            FileSync(host="~/file", guest="~/.ssh/authorized_keys/x"),
        ),
    )
    disk, said = await make(part, seed)
    assert disk.cat(".ssh/authorized_keys") == b"bangers\n"
    assert disk.cat(".ssh/config") == b"Host x\n"
    assert disk.mode(".ssh") == 0o0700
    assert [line.partition("'")[2] for line in said] == [
        "~/.ssh/authorized_keys' is banger's own there: skipped",
        "~/.ssh/authorized_keys' is banger's own there: skipped",
        "~/.ssh' is banger's own there: skipped",
        "~/.ssh/authorized_keys/x' is banger's own there: skipped",
    ]


@pytest.mark.parametrize("name", [".gitconfig", ".config/git/config"])
async def test_a_git_configuration_that_comes_along_wins(
    tmp_path: Path, home: Path, make: Make, name: str
) -> None:
    (home / "cfg").write_text("[user]\n\tname = mine\n")
    who = UsersPart(HostHome(str(home)), (), git_name="Ann", git_email="a@example.org")
    disk, _ = await make(who, write_seed(tmp_path / "s.tar", (f"./{name}", b"image's", "")))
    assert disk.cat(f"{name}") == b"image's"
    assert (".gitconfig" in disk.entries) == (name == ".gitconfig")
    sync = (FileSync(host="~/cfg", guest=f"~/{name}"),)
    who = UsersPart(HostHome(str(home)), sync, git_name="Ann", git_email="a@example.org")
    disk, _ = await make(who, write_seed(tmp_path / "t.tar"))
    assert disk.cat(f"{name}") == b"[user]\n\tname = mine\n"
    assert (".gitconfig" in disk.entries) == (name == ".gitconfig")


async def test_what_does_not_fit_leaves_no_disk(tmp_path: Path, home: Path, make: Make) -> None:
    seed = write_seed(tmp_path / "seed.tar")
    (home / "big").write_bytes(b"x" * (20 << 20))
    with pytest.raises(BangerError, match=r"entry 1: '~/big' \(20480 KiB\) does not fit") as caught:
        await make(UsersPart(HostHome(str(home)), (FileSync(host="~/big", guest="~/b"),)), seed)
    assert caught.value.code is ErrorCode.NO_SPACE
    (home / "big").write_bytes(b"x" * (SIZE - (1 << 20)))
    with pytest.raises(BangerError, match=r"entry 1, '~/big', needs most") as caught:
        await make(UsersPart(HostHome(str(home)), (FileSync(host="~/big", guest="~/b"),)), seed)
    assert caught.value.code is ErrorCode.NO_SPACE
    assert sorted(os.listdir(tmp_path)) == ["home", "seed.tar"]


async def test_a_path_that_gets_too_long_is_the_configurations_fault(
    tmp_path: Path, home: Path, make: Make
) -> None:
    deep = "/".join(["d" * 250] * 14)
    here = os.open(home, os.O_RDONLY)
    for name in deep.split("/"):
        os.mkdir(name, dir_fd=here)
        above, here = here, os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)
    guest = "~/" + "/".join(["g" * 250] * 10)
    part = UsersPart(HostHome(str(home)), (FileSync(host="~", guest=guest),))
    with pytest.raises(BangerError, match="what no ext4 can hold") as caught:
        await make(part, write_seed(tmp_path / "seed.tar"))
    assert caught.value.code is ErrorCode.INVALID_CONFIG


async def test_nothing_of_the_users_is_nothing_to_do() -> None:
    assert UsersPart(HostHome("/x", uid=0)).is_empty()
    assert not UsersPart(HostHome("/x"), git_email="a").is_empty()
    assert not UsersPart(HostHome("/x"), (FileSync(host="~/a", guest="~/a"),)).is_empty()


@given(st.text(max_size=30).filter(lambda text: "\0" not in text and "\r" not in text))
def test_git_reads_what_was_said(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    path = tmp_path_factory.getbasetemp() / "gitconfig"
    path.write_bytes(git_config(text, "a@example.org"))
    said = subprocess.run(
        ["git", "config", "-f", str(path), "-z", "--list"], check=True, capture_output=True, timeout=60
    ).stdout.decode()
    wanted = {f"user.name\n{text}"} if text else set()
    assert {line for line in said.split("\0") if line} == wanted | {"user.email\na@example.org"}
