"""A guest's repository played by a real one in tmp_path, and the store that its work is kept in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from banger.workspace.hostrepository import HostRepository
from banger.workspace.repository import Repository
from banger.workspace.snapshot import Brought, Snapshot, take
from banger.workspace.store import WorkStore

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A Guest",
    "GIT_AUTHOR_EMAIL": "guest@example.org",
    "GIT_COMMITTER_NAME": "A Guest",
    "GIT_COMMITTER_EMAIL": "guest@example.org",
}


def git(folder: Path, *argv: str, stdin: bytes | None = None, fails: bool = False) -> str:
    ended = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-c", "gc.auto=0", *argv],
        cwd=folder,
        env=ENV,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert fails == bool(ended.returncode), ended.stderr.decode("utf-8", "replace")
    return ended.stdout.decode("utf-8", "surrogateescape").strip()


def commit(folder: Path, message: str, **files: str) -> str:
    for name, content in files.items():
        (folder / name).write_text(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


class Guest:
    """folder: the work tree. brought: as the preparation would have told it."""

    def __init__(self, tmp_path: Path, *, commits: int = 3) -> None:
        self.folder = tmp_path / "guest"
        self.folder.mkdir()
        git(self.folder, "init", "-q", "-b", "main")
        for number in range(commits):
            commit(self.folder, f"brought {number}", a=f"a {number}\n", b="b\n")
        self.brought = self.prepare()

    def prepare(self) -> Brought:
        """As it is now, that is what was brought."""
        base = git(self.folder, "rev-parse", "HEAD")
        index = git(self.folder, "write-tree")
        copy = self.folder / ".git" / "brought-index"
        shutil.copy2(self.folder / ".git" / "index", copy)
        words = ["--git-dir=.git", "--work-tree=."]
        env = {**ENV, "GIT_INDEX_FILE": str(copy)}
        subprocess.run(["git", *words, "add", "-u"], cwd=self.folder, env=env, check=True)
        tree = subprocess.run(
            ["git", *words, "write-tree"], cwd=self.folder, env=env, check=True, capture_output=True
        ).stdout.decode()
        brought = git(self.folder, "commit-tree", tree.strip(), "-p", base, "-m", "brought")
        git(self.folder, "update-ref", "refs/banger/base", brought)
        refs = {"HEAD": base, "index": index}
        for line in git(self.folder, "for-each-ref", "--format=%(objectname) %(refname)").splitlines():
            identifier, name = line.split(" ", 1)
            if not name.startswith("refs/banger/"):
                refs[name[len("refs/") :]] = identifier
        self.brought = Brought(base_commit=base, brought_commit=brought, refs=refs)
        return self.brought

    def git(self, *argv: str, fails: bool = False) -> str:
        return git(self.folder, *argv, fails=fails)

    def commit(self, message: str, **files: str) -> str:
        return commit(self.folder, message, **files)

    def write(self, name: str, content: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    async def repository(self, tmp_path: Path) -> HostRepository:
        """Staged as a copy, as it would be from a disk."""
        number = len(list(tmp_path.glob("staged-*")))
        staged = tmp_path / f"staged-{number}"
        own = tmp_path / f"own-{number}"
        own.mkdir()
        shutil.copytree(self.folder, staged, symlinks=True)
        return await HostRepository.adopt(str(staged), str(own), how="disk", known_as=str(self.folder))

    def live(self) -> Repository:
        """The repository itself, as the guest's own git sees it."""
        scratch = self.folder.with_name("scratch")
        return HostRepository(str(self.folder / ".git"), str(self.folder), scratch=str(scratch))


class Kept:
    """A store, and what of it is asked."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"
        self.store = WorkStore(str(self.folder))

    async def keep(self, repository: Repository, brought: Brought, *, ignored: bool = False) -> Snapshot:
        snapshot = await take(repository, brought, made=await self.store.made(), ignored=ignored)
        await self.store.receive(snapshot.parts)
        await snapshot.aclose()
        await repository.aclose()
        return snapshot

    def git(self, *argv: str, fails: bool = False) -> str:
        return git(self.folder / "repo.git", *argv, fails=fails)

    async def names(self) -> set[str]:
        return set(await self.store.refs())

    async def current(self) -> dict[str, str]:
        return {
            name: identifier for name, identifier in (await self.store.refs()).items() if name[:4] != "old/"
        }

    async def old(self) -> set[tuple[str, str]]:
        """(name without its stamp, id)."""
        refs = await self.store.refs()
        return {
            (name.split("/", 2)[2], identifier) for name, identifier in refs.items() if name[:4] == "old/"
        }

    async def old_ids(self) -> set[str]:
        return {identifier for _, identifier in await self.old()}

    def files(self, name: str = "worktree") -> dict[str, str]:
        """path -> content, of what a kept ref has."""
        listed = self.git("ls-tree", "-r", "-z", "--name-only", f"refs/work/{name}").split("\0")
        return {path: self.git("show", f"refs/work/{name}:{path}") for path in listed if path}

    def whole(self) -> None:
        """Nothing is missing in the store, and nothing is broken."""
        self.git("fsck", "--full", "--strict", "--no-dangling", "--connectivity-only")
