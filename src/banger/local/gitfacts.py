"""What the user's repository is: where its parts are, its configuration, HEAD, and what its index lists.

Read with git as the user (local/git.py) by local/gitsource.py and those behind it. Only questions: nothing is
compared with the work tree and nothing is converted, so that no filter has a part in it. Writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account
from banger.local.asuser import acting_as
from banger.local.git import Git, GitFailed

if TYPE_CHECKING:
    from banger.system.run import Completed

GITLINK = "160000"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an index. stage: 0, or 1 to 3 of a conflict."""

    path: bytes
    mode: str
    object_id: str
    stage: int
    skipped: bool
    """skip-worktree: a sparse checkout leaves it out."""


@dataclass(frozen=True, slots=True)
class Config:
    """What counts there: the last value of each key. Keys as `git config --list` has them."""

    values: dict[str, str]

    def get(self, key: str, default: str = "") -> str:
        return self.values.get(key, default)

    def flag(self, key: str) -> bool:
        """git's booleans; a key without a value is true."""
        return self.values.get(key, "false").lower() in ("true", "yes", "on", "1")

    def names(self, section: str) -> list[str]:
        """The subsections: `x` for `filter.x.clean`."""
        found: dict[str, None] = {}
        for key in self.values:
            first, _, rest = key.partition(".")
            name, dot, _ = rest.rpartition(".")
            if first == section and dot:
                found[name] = None
        return list(found)


@dataclass(frozen=True, slots=True)
class Repository:
    """root: of the work tree. current_branch: "" when detached."""

    git: Git
    root: str
    git_dir: str
    common_dir: str
    object_format: str
    config: Config
    head_commit: str
    current_branch: str

    @property
    def objects(self) -> str:
        return os.path.join(self.common_dir, "objects")

    @property
    def is_partial(self) -> bool:
        """A clone that fetches objects when they are needed."""
        return bool(self.config.get("extensions.partialclone")) or any(
            self.config.flag(f"remote.{name}.promisor") for name in self.config.names("remote")
        )


def open_repository(path: str, account: Account) -> Repository:
    """What is at or above the path. Raises what a user can do something about."""
    git = Git(path, account)
    try:
        asked = ("--is-bare-repository", "--is-inside-work-tree", "--show-object-format")
        done = git.run("rev-parse", *asked, "--show-toplevel", ok=(0, 128))
    except GitFailed as error:
        raise explained(error, path) from error
    answers = os.fsdecode(done.stdout).split("\n", 3)
    if len(answers) < 4:
        raise explained(GitFailed(done.argv, done.status, done.stderr), path)
    bare, inside, object_format, root = answers
    root = root.removesuffix("\n")
    if bare == "true" or inside != "true" or not root:
        what = "is a bare repository" if bare == "true" else "is inside a repository's .git folder"
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{path} {what}: there are no files to bring",
            hint="name a work tree: the folder that a clone of it made, or `git worktree add`",
        )
    git = Git(root, account)
    config = _read_config(git)
    git = Git(root, account, drivers=config.names("filter"))
    git_dir = git.text("rev-parse", "--absolute-git-dir")
    with acting_as(account):
        common_dir = _common_dir(git_dir)
    head = git.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    branch = git.text("symbolic-ref", "--quiet", "HEAD")
    return Repository(
        git=git,
        root=root,
        git_dir=git_dir,
        common_dir=common_dir,
        object_format=object_format,
        config=config,
        head_commit=head,
        current_branch=branch.removeprefix("refs/heads/") if branch.startswith("refs/heads/") else "",
    )


def explained(error: GitFailed, path: str) -> BangerError:
    """git's word for what it is, where it is one that a user meets."""
    said = error.message
    if "not a git repository" in said and "dubious" not in (error.details or ""):
        return BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{path} is not in a git repository",
            details=error.details,
            hint="`git init`, `git add` and `git commit` make one of it; `banger vm cp` copies any folder",
        )
    if "dubious ownership" in (error.details or ""):
        return BangerError(
            ErrorCode.PERMISSION_DENIED,
            f"git refuses {path}: the repository belongs to somebody else",
            details=error.details,
            hint=f"run banger as its owner, or trust it: git config --global --add safe.directory {path}",
        )
    return error


def _common_dir(git_dir: str) -> str:
    try:
        with open(os.path.join(git_dir, "commondir"), "rb") as file:
            return os.path.normpath(os.path.join(git_dir, os.fsdecode(file.read(1 << 16)).rstrip("\n")))
    except FileNotFoundError:
        return git_dir


def _read_config(git: Git) -> Config:
    done = git.run("config", "--list", "--includes", "-z")
    values: dict[str, str] = {}
    for entry in os.fsdecode(done.stdout).split("\0"):
        key, newline, value = entry.partition("\n")
        if key:
            values[key] = value if newline else "true"
    return Config(values)


def read_entries(run: Callable[..., Completed]) -> tuple[Entry, ...]:
    """An index's entries, in its order. run: a Git's or a Scratch's."""
    found: list[Entry] = []
    for record in run("ls-files", "--stage", "-t", "-z").stdout.split(b"\0"):
        if not record:
            continue
        facts, _, path = record.partition(b"\t")
        tag, mode, object_id, stage = facts.split(b" ")
        if any(part in (b"", b".", b"..") or part.lower() == b".git" for part in path.split(b"/")):
            raise BangerError(
                ErrorCode.INVALID_ARGUMENT, f"the index lists a name that no file can have: {path[:200]!a}"
            )
        found.append(Entry(path, mode.decode(), object_id.decode(), int(stage), tag in (b"S", b"s")))
    return tuple(found)
