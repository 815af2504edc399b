"""Repositories of the user's on this host: opened as them, asked, and which tips of kept work are for which.

Reads only. Used by local/gitpull.py, gitclone.py and the CLI; blocking. Raises BangerError, NOT_FOUND where
there is no repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, this_account
from banger.local.asuser import acting_as
from banger.local.git import Git, GitFailed
from banger.local.kepttips import OLD, Kept, is_id
from banger.local.tempgit import TempRepository

SUB = "sub/"


class Found(NamedTuple):
    """A repository of the user's."""

    git: Git
    folder: str
    objects: str
    object_format: str
    shallow: bytes


class Target(NamedTuple):
    """A repository of the user's, and which tips are for it: names there to names in the work."""

    found: Found
    names: dict[str, str]
    tips: dict[str, str]
    kept_aside: frozenset[str] = frozenset()
    """Names there that are not to be touched."""

    def without(self, left_out: set[str]) -> Target:
        aside = {name for name, source in self.names.items() if source in left_out}
        tips = {name: commit for name, commit in self.tips.items() if name not in aside}
        return self._replace(tips=tips, kept_aside=frozenset(aside))

    def sources(self, left_out: set[str]) -> list[str]:
        return [source for source in self.names.values() if source not in left_out]


def targets_of(found: Found, tips: Mapping[str, str], account: Account) -> list[Target]:
    """The repository, then those submodules of it that are checked out: their tips are for them."""
    chosen: dict[str, dict[str, str]] = {found.folder: {}}
    opened: dict[str, Found] = {found.folder: found}
    for name in tips:
        folder, inner = _place(found.folder, name, opened, account)
        chosen.setdefault(folder, {})[inner] = name
    return [
        Target(opened[folder], names, {inner: tips[name] for inner, name in names.items()})
        for folder, names in chosen.items()
    ]


def _place(folder: str, name: str, opened: dict[str, Found], account: Account) -> tuple[str, str]:
    """(the folder of the repository, the name there) for `sub/<path>/heads/x` and `old/<stamp>/sub/…`."""
    parts = name.split("/")
    old = parts[:2] if name.startswith(OLD) else []
    rest = parts[len(old) :]
    if rest[0] != SUB[:-1]:
        return folder, name
    for length in range(2, len(rest)):
        inner = os.path.join(folder, *rest[1:length])
        with acting_as(account):
            if not os.path.lexists(os.path.join(inner, ".git")):
                continue
        if inner not in opened:
            try:
                opened[inner] = open_repository(inner, account)
            except BangerError:
                continue
        if opened[inner].folder == inner and opened[inner].object_format == opened[folder].object_format:
            return _place(inner, "/".join([*old, *rest[length:]]), opened, account)
    return folder, name


def prefix_of(kept: Kept) -> str:
    return f"refs/banger/{kept.vm_name}/"


def find_repository(kept: Kept, asked: str, recorded: str, *, account: Account | None = None) -> str:
    """The folder to pull into: the one asked for, else the recorded one, else this folder's, when it has the
    commit on which the work builds. Blocking. NOT_FOUND when there is none."""
    account = this_account() if account is None else account
    if asked:
        return open_repository(os.path.abspath(asked), account).folder
    if recorded:
        try:
            return open_repository(recorded, account).folder
        except BangerError as error:
            why = error.brief
    else:
        why = "it is not known where it came from"
    try:
        here = open_repository(os.getcwd(), account)
        if kept.base and has_commit(here.git, kept.base):
            return here.folder
    except (BangerError, OSError):
        pass
    raise BangerError(
        ErrorCode.NOT_FOUND,
        f"no repository to pull the work of {kept.vm_name} into: {why}",
        hint=f"banger workspace pull {kept.vm_name} PATH, or --into DIR for a new clone",
    )


def resolve_commit(folder: str, text: str, *, account: Account | None = None) -> str:
    """The full id of what names a commit in the user's repository; "" where there is none. Blocking."""
    try:
        git = Git(folder, this_account() if account is None else account)
        done = git.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}", ok=(0, 1, 128)
        )
    except (BangerError, ValueError):
        return ""
    found = done.stdout.decode("ascii", "replace").strip()
    return found if done.status == 0 and is_id(found) else ""


class Standing(NamedTuple):
    """Of kept work in the user's repository: what of it is there, and whether that moved on."""

    folder: str
    pulled: frozenset[str]
    """Names of tips whose ref below refs/banger/<vm>/ is the same."""
    present: frozenset[str]
    """Names of tips whose commit is there, by whatever way."""
    head: str
    """The commit that is checked out now."""


def standing(kept: Kept, folder: str, *, account: Account | None = None) -> Standing:
    """Blocking. Raises NOT_FOUND where there is no repository; changes nothing."""
    account = this_account() if account is None else account
    targets = targets_of(open_repository(folder, account), kept.tips, account)
    pulled: set[str] = set()
    there: set[str] = set()
    for target in targets:
        refs = read_refs(target.found.git, prefix_of(kept))
        here = present(target.found.git, target.tips.values())
        pulled.update(target.names[name] for name, commit in target.tips.items() if refs.get(name) == commit)
        there.update(target.names[name] for name, commit in target.tips.items() if commit in here)
    found = targets[0].found
    head = found.git.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    return Standing(found.folder, frozenset(pulled), frozenset(there), head)


def local_branches(folder: str, *, account: Account | None = None) -> tuple[str, set[str]]:
    """(the one that is checked out, "" for none; all of them). Blocking."""
    git = Git(folder, this_account() if account is None else account)
    return git.text("symbolic-ref", "--quiet", "--short", "HEAD"), set(read_refs(git, "refs/heads/"))


def open_repository(folder: str, account: Account) -> Found:
    """NOT_FOUND with what git says: there is no repository, or it is somebody else's."""
    try:
        git = Git(folder, account)
        bare = git.text("rev-parse", "--is-bare-repository") == "true"
        top = git.text("rev-parse", *(["--absolute-git-dir"] if bare else ["--show-toplevel"]))
        objects = git.text("rev-parse", "--git-path", "objects")
        cut = git.text("rev-parse", "--git-path", "shallow")
        object_format = git.text("rev-parse", "--show-object-format")
    except GitFailed as error:
        raise BangerError(
            ErrorCode.NOT_FOUND, f"{folder!a}: {error.message[:300]}", details=error.details
        ) from error
    try:
        with acting_as(account), open(os.path.join(folder, cut), "rb") as file:
            shallow = file.read()
    except FileNotFoundError:
        shallow = b""
    return Found(Git(top, account), top, os.path.join(folder, objects), object_format, shallow)


def read_refs(git: Git, prefix: str) -> dict[str, str]:
    """Names below the prefix, and what they are."""
    refs: dict[str, str] = {}
    listed = git.run("for-each-ref", "--format=%(objectname) %(refname)", prefix)
    for line in os.fsdecode(listed.stdout).split("\n")[:-1]:
        commit, _, name = line.partition(" ")
        refs[name.removeprefix(prefix)] = commit
    return refs


def has_commit(git: Git, commit: str) -> bool:
    return git.run("cat-file", "-e", f"{commit}^{{commit}}", ok=(0, 1, 128)).status == 0


def present(git: Git | TempRepository, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are objects there."""
    asked = set(ids) - {""}
    done = git.run("cat-file", "--batch-check=%(objectname)", input=lines_of(sorted(asked)))
    return asked & set(done.stdout.decode().split("\n"))


def lines_of(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()
