"""The work that banger keeps of a VM's workspace: what is in its store, in words and commit ids (SPEC §6).

Made by workspace/, carried by the API, shown by the CLI. Names and subjects come from a guest: whoever
prints them escapes them. Pure: no I/O.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from banger.model.records import Workspace

SUBJECT_LENGTH = 200
"""Characters of a commit's first line that a KeptRef carries."""


class KeptRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tip in the store, there as `refs/work/<name>`.

    name: `HEAD`, `heads/main`, `tags/v1`, `stash`, `stash-1`, `notes/commits`, `other/<ref>`; `index` and
    `worktree`, the commits banger made of what was staged and of the files; `reflog/<short id>` of commits
    that only a reflog still names; each of those again below `sub/<path>/` for a repository inside, and below
    `old/<YYYYmmddTHHMMSSZ>/` for a tip that has moved on and is not part of anything newer.
    commit: the full id (of an annotated tag: the tag's own).
    subject: its first line, bounded; may hold anything, escape it on terminals.
    """

    name: str
    commit: str
    subject: str = ""


class WorkChanges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts, as `git status` has them. ahead: commits of HEAD that base_commit has not; the rest: files."""

    ahead: int = 0
    staged: int = 0
    unstaged: int = 0
    untracked: int = 0
    conflicts: int = 0


class Work(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one VM's workspace. vm_exists is filled in by who lists.

    kept_at: when last, None when nothing was kept yet. how: `guest-git`, `guest-files` or `disk`.
    changed: something is in it that was not brought. head: "" for an unborn branch; branch: "" when detached.
    refs: only what is not simply as brought, old ones too. cut: commits in it whose parents are not (the
    user's own repository has those). notes: what could not be kept, whole sentences. files_only: why the
    history could not be kept and the files alone are, "" where it is: a delete would lose it.
    """

    vm_id: str
    vm_name: str
    workspace: Workspace
    vm_exists: bool = False
    kept_at: datetime | None = None
    how: str = ""
    changed: bool = False
    head: str = ""
    branch: str = ""
    changes: WorkChanges = WorkChanges()
    refs: tuple[KeptRef, ...] = ()
    cut: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files_only: str = ""
