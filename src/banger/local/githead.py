"""Which commit is checked out in the user's repository now: from a few small files, rarely by git.

For `vm exec` and `vm shell`, which warn when the host's repository has moved on: on the way to every command,
hence no program and nothing but the standard library. Reads only.
"""

from __future__ import annotations

import os
import re

from banger.errors import BangerError
from banger.local.account import Account, this_account
from banger.local.asuser import acting_as

_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")
_MAX_FILE = 64 << 20
"""packed-refs of a repository with a million refs."""
_MAX_STEPS = 5


def host_moved(repo_root: str, head_commit: str, account: Account | None = None) -> str:
    """HEAD's commit of the repository now (`head_commit` where it did not move); "" when it is gone."""
    account = this_account() if account is None else account
    try:
        with acting_as(account):
            found = _read_head(repo_root)
    except (OSError, ValueError):
        return ""
    if found is not None:
        return found
    from banger.local.git import Git

    try:
        return Git(repo_root, account).text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except BangerError:
        return ""


def _read_head(root: str) -> str | None:
    """None: only git knows."""
    git_dir = os.path.join(root, ".git")
    if not os.path.isdir(git_dir):
        word, _, path = _read(git_dir, 1 << 16).partition(": ")
        if word != "gitdir":
            return ""
        git_dir = os.path.join(root, path.rstrip("\n"))
    common = git_dir
    if os.path.exists(os.path.join(git_dir, "commondir")):
        common = os.path.join(git_dir, _read(os.path.join(git_dir, "commondir"), 1 << 16).rstrip("\n"))
    if os.path.exists(os.path.join(common, "reftable")):
        return None
    said = _read(os.path.join(git_dir, "HEAD"), 1 << 16).rstrip("\n")
    for _ in range(_MAX_STEPS):
        if not said.startswith("ref: "):
            return said if _ID.match(said) else None
        name = said.removeprefix("ref: ").strip()
        if not name.startswith("refs/") or ".." in name:
            return None
        try:
            said = _read(os.path.join(common, name), 1 << 16).rstrip("\n")
        except FileNotFoundError:
            return _packed(common, name)
        except (NotADirectoryError, IsADirectoryError):
            return None
    return None


def _packed(common: str, name: str) -> str:
    """ "" where there is no such ref: a branch without a commit."""
    try:
        text = _read(os.path.join(common, "packed-refs"), _MAX_FILE)
    except FileNotFoundError:
        return ""
    for line in text.splitlines():
        commit, _, ref = line.partition(" ")
        if ref == name and _ID.match(commit):
            return commit
    return ""


def _read(path: str, limit: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return os.fsdecode(file.read(limit))
