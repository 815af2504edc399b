"""Real git repositories for the tests of local/git*.py, and what came of one in a folder."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

from banger.local.account import Account, this_account
from banger.local.gitsource import Source
from banger.local.gittravel import TOP, Travel, open_travel

ENV = {
    "PATH": os.environ["PATH"],
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}

STRANGE = ("ünï/cödé.txt", "new\nline", " lead", "tab\there", "quote\"'", "-dash", "a b/c d")


class Repo:
    """A repository with a home beside it, so that nobody's own configuration has a part."""

    def __init__(self, path: Path, home: Path, *, init: bool = True) -> None:
        self.path = path
        self.home = home
        path.mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        if init:
            self.git("init", "-q", "-b", "main")

    def account(self, **env: str) -> Account:
        return this_account({"HOME": str(self.home), "PATH": ENV["PATH"], **env}, euid=1000)

    def git(self, *argv: str, input: bytes | None = None, check: bool = True) -> str:
        env = {**ENV, "HOME": str(self.home), "GIT_ALLOW_PROTOCOL": "file"}
        done = subprocess.run(
            ["git", "-C", self.path, *argv], env=env, input=input, capture_output=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.decode("utf-8", "surrogateescape")

    def write(self, name: str | bytes, data: str | bytes, mode: int = 0o644) -> Path:
        path = self.path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)
        return path

    def commit(self, message: str = "more") -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.head()

    def head(self, ref: str = "HEAD") -> str:
        return self.git("rev-parse", ref).strip()

    def status(self, *, untracked: bool = False) -> list[str]:
        out = self.git("status", "--porcelain", "-z", "-uall" if untracked else "-uno")
        return sorted(out.split("\0"))


def make(tmp_path: Path, name: str = "site") -> Repo:
    """One commit on main, of one file."""
    repo = Repo(tmp_path / name, tmp_path / "home")
    repo.write("a.txt", "one\n")
    repo.commit("first")
    return repo


def rich(tmp_path: Path) -> Repo:
    """History, links, modes, strange names, line ends, an ignored and an untracked file."""
    repo = make(tmp_path)
    for name in STRANGE:
        repo.write(name, name)
    repo.write(b"latin-\xe9", b"\xe9")
    repo.write("bin/run", "#!/bin/sh\n", 0o755)
    repo.write("crlf.txt", b"one\r\ntwo\r\n")
    repo.write(".gitignore", "*.log\n")
    (repo.path / "link").symlink_to("bin/run")
    (repo.path / "dangling").symlink_to("/nowhere/at all")
    repo.commit("all sorts")
    repo.write("a.txt", "two\n")
    repo.commit("second")
    repo.write("secret.env", "TOKEN=1\n")
    repo.write("noise.log", "x\n")
    os.utime(repo.path / "bin/run", ns=(1, 1_234_567_890_123_456_789))
    return repo


def change(repo: Repo) -> None:
    """Every way in which a work tree and an index differ from HEAD and from each other."""
    repo.write("crlf.txt", b"one\r\nthree\r\n")  # unstaged
    repo.write("staged.txt", "new\n")
    repo.git("add", "staged.txt")
    repo.write("staged.txt", "newer\n")  # staged, and changed again
    repo.git("mv", "a b/c d", "moved")
    repo.git("rm", "-q", "quote\"'")
    (repo.path / " lead").unlink()  # deleted, not staged
    repo.git("rm", "-q", "--cached", "--", "-dash")  # staged deletion, still there
    repo.write("later", "x\n")
    repo.git("add", "-N", "later")
    (repo.path / "a.txt").chmod(0o755)
    (repo.path / "link").unlink()
    repo.write("link", "a file now\n")


def check_same(repo: Repo, guest: Repo) -> None:
    assert guest.status() == repo.status()
    assert guest.git("diff", "--binary") == repo.git("diff", "--binary")
    assert guest.git("diff", "--cached", "--binary") == repo.git("diff", "--cached", "--binary")
    assert guest.git("fsck", "--strict", "--no-dangling") == ""


def tar_of(travel: Travel) -> bytes:
    pieces: list[bytes] = []

    def take(piece: bytes | memoryview) -> None:
        assert 0 < len(piece) <= 256 << 10
        pieces.append(bytes(piece))

    travel.write_tar(take)
    return b"".join(pieces)


def arrive(source: Source, folder: Path) -> tuple[Repo, Travel]:
    """What would be in the guest. Its repository's home has nothing of the user's."""
    folder.mkdir()
    with open_travel(source) as travel, tarfile.open(fileobj=io.BytesIO(tar_of(travel))) as tar:
        for member in tar.getmembers():
            assert member.name == TOP or member.name.startswith(f"{TOP}/")
            assert (member.uid, member.gid) == (0, 0)
        tar.extractall(folder, filter="fully_trusted")
    return Repo(folder / TOP, folder / "home", init=False), travel


def fingerprint(path: Path) -> dict[str, tuple[object, ...]]:
    """Every file's and folder's mode, time and content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files, "."):
            one = os.path.join(folder, name)
            status = os.lstat(one)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(one).read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(one)
            found[one] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found
