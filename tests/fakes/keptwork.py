"""Kept work without a daemon: real git makes the packs and patches that the store would, of a real clone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CHUNK = 65536
ENV = {
    "PATH": os.environ["PATH"],
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


def git(
    folder: Path, *argv: str, stdin: bytes | None = None, ok: bool = True, env: Mapping[str, str] = {}
) -> str:
    """git's stdout, without the newline at its end."""
    done = git_raw(folder, *argv, stdin=stdin, env=env)
    assert not ok or done.returncode == 0, (argv, done.stderr.decode())
    return os.fsdecode(done.stdout.removesuffix(b"\n"))


def git_raw(
    folder: Path, *argv: str, stdin: bytes | None = None, env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "-C", folder, "-c", "protocol.file.allow=always", *argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**ENV, **env},
        timeout=120,
        check=False,
    )


def commit(folder: Path, name: str, text: str = "", message: str = "") -> str:
    """A commit that writes one file; its id."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or name)
    git(folder, "add", "-A", "--", name)
    git(folder, "commit", "-q", "-m", message or f"write {name}")
    return git(folder, "rev-parse", "HEAD")


def repository(folder: Path, *, object_format: str = "sha1") -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main", f"--object-format={object_format}")
    for name in ("one", "two", "three"):
        commit(folder, name)
    return folder


class KeptWork:
    """The work in `guest`, a clone, as the daemon would tell of it and hand it out."""

    def __init__(self, guest: Path, user: Path, *, name: str = "web", base: str = "") -> None:
        self.guest = guest
        self.user = user
        self.name = name
        self.base = base or git(guest, "rev-parse", "HEAD")
        self.vm_id = "ab" * 32
        self.vm_exists = True
        self.asked: list[list[str]] = []
        self.extra: dict[str, str] = {}
        """Names of refs, and what they are, that are told besides."""
        self.old: dict[str, str] = {}
        self.cut = [self.base]

    def worktree(self) -> str:
        """A commit of the files as they are, as the store makes it; "" when they are HEAD's."""
        index = self.guest / ".git" / "keep-index"
        env = {"GIT_INDEX_FILE": str(index)}
        git(self.guest, "read-tree", "HEAD", env=env)
        git(self.guest, "add", "-A", env=env)
        tree = git(self.guest, "write-tree", env=env)
        index.unlink()
        if tree == git(self.guest, "rev-parse", "HEAD^{tree}"):
            return ""
        made = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}
        return git(self.guest, "commit-tree", tree, "-p", "HEAD", "-m", "the files as they are", env=made)

    def tips(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in git(self.guest, "for-each-ref", "--format=%(objectname) %(refname)").splitlines():
            oid, _, name = line.partition(" ")
            if name.startswith(("refs/heads/", "refs/tags/")) or name == "refs/stash":
                found[name.removeprefix("refs/")] = oid
        found = {name: oid for name, oid in found.items() if oid != self.base}
        head = git(self.guest, "rev-parse", "HEAD")
        if not git(self.guest, "branch", "--show-current"):
            found["HEAD"] = head
        if files := self.worktree():
            found["worktree"] = files
        return {**found, **self.old, **self.extra}

    def work(self) -> dict[str, object]:
        tips = self.tips()
        refs = []
        for name, oid in tips.items():
            subject = git(self.guest, "log", "-1", "--format=%s", oid, ok=False)
            refs.append({"name": name, "commit": oid, "subject": subject})
        ahead = git(self.guest, "rev-list", "--count", f"{self.base}..HEAD")
        return {
            "vm_id": self.vm_id,
            "vm_name": self.name,
            "vm_exists": self.vm_exists,
            "workspace": {
                "repo_root": str(self.user),
                "repo_name": self.user.name,
                "guest_path": "/root/repo",
                "mode": "shallow_overlay",
                "base_commit": self.base,
                "head_commit": self.base,
                "current_branch": "main",
            },
            "kept_at": "2026-11-21T15:00:00Z",
            "how": "guest-git",
            "changed": bool(tips),
            "head": git(self.guest, "rev-parse", "HEAD"),
            "branch": git(self.guest, "branch", "--show-current"),
            "changes": {"ahead": int(ahead), "untracked": 1},
            "refs": refs,
            "cut": self.cut,
        }

    def pack(self, have: Sequence[str]) -> Iterator[bytes]:
        self.asked.append(list(have))
        lines = [
            *(f"--shallow {one}" for one in self.cut),
            *set(self.tips().values()),
            *(f"^{one}" for one in have),
        ]
        words = [
            "--shallow-file",
            "",
            "pack-objects",
            "--revs",
            "--stdout",
            "--thin",
            "-q",
            "--delta-base-offset",
        ]
        yield from _pieces(
            git_raw(self.guest, *words, stdin="".join(f"{x}\n" for x in lines).encode()).stdout
        )

    def has(self, commit: str) -> bool:
        """The store ends at what was brought."""
        above = [f"^{one}^@" for one in self.cut]
        return commit in git(self.guest, "rev-list", *set(self.tips().values()), self.base, *above).split()

    def patch(self, base: str = "") -> bytes:
        files = self.worktree() or "HEAD"
        return git_raw(self.guest, "diff", "--binary", "--full-index", base or self.base, files).stdout


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]
