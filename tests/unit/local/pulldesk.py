"""A user, a guest and the work between them, for the tests of pulls; and packs made by hand."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from pathlib import Path

from banger.local import gitclone, gitpull
from banger.local.account import Account, this_account
from banger.local.kepttips import read_kept
from tests.fakes.keptwork import KeptWork, git, repository

PREFIX = "refs/banger/web/"


class Desk:
    """A user with a repository, a guest with a clone of it, and pulls from one to the other."""

    def __init__(self, folder: Path, *, object_format: str = "sha1") -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.user = repository(folder / "user", object_format=object_format)
        self.guest = folder / "guest"
        git(folder, "clone", "-q", str(self.user), str(self.guest))
        git(self.guest, "remote", "remove", "origin")
        self.work = KeptWork(self.guest, self.user)
        self.account: Account = this_account({"HOME": str(self.home), "PATH": os.environ["PATH"]}, euid=1000)

    def pull(self, folder: Path | None = None) -> gitpull.Pulled:
        kept = read_kept(self.work.work())
        return gitpull.pull(kept, self.work.pack, str(folder or self.user), account=self.account)

    def clone(self, folder: Path) -> gitpull.Pulled:
        return gitclone.clone(read_kept(self.work.work()), self.work.pack, str(folder), account=self.account)

    def refs(self, folder: Path | None = None) -> dict[str, str]:
        listed = git(folder or self.user, "for-each-ref", "--format=%(refname) %(objectname)", PREFIX)
        return {n.removeprefix(PREFIX): oid for n, oid in map(str.split, listed.splitlines())}


def state(folder: Path) -> dict[str, str]:
    """Everything of a repository but objects and banger's refs: content, mode and time of each file."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith((".git/objects", ".git/refs/banger")) or name == ".git/refs":
            continue
        info = path.lstat()
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = os.readlink(path) if path.is_symlink() else ""
        times = "" if name == ".git" else str(info.st_mtime_ns)  # a lock that comes and goes is not a change
        found[name] = f"{info.st_mode:o} {times} {content}"
    return found


def objects(folder: Path) -> list[str]:
    return sorted(str(p) for p in (folder / ".git/objects").rglob("*") if p.is_file())


def pack_of(*entries: tuple[int, bytes], size: int | None = None) -> bytes:
    """A pack of whole objects: type (1 commit, 2 tree, 3 blob), content. size: what the headers claim."""
    body = b"PACK" + struct.pack(">II", 2, len(entries))
    for kind, data in entries:
        left = len(data) if size is None else size
        byte = kind << 4 | left & 15
        left >>= 4
        while left:
            body += bytes([byte | 128])
            byte, left = left & 127, left >> 7
        body += bytes([byte]) + zlib.compress(data)
    return body + hashlib.sha1(body).digest()


def oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def tree_of(name: bytes, blob: str, mode: bytes = b"100644") -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(blob)


def commit_of(tree: str, parent: str = "") -> bytes:
    who = "Ann <ann@example.org> 1700000000 +0000"
    above = f"parent {parent}\n" if parent else ""
    return f"tree {tree}\n{above}author {who}\ncommitter {who}\n\nhostile\n".encode()
