"""A merge, cherry-pick or revert that the user is in the middle of: it goes on in the guest.

For local/gitscratch.py. Without MERGE_HEAD a conflict solved there would be committed with one parent. A
rebase or a bisection has its state in more than git's documented files: it stays home, and that is said.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from banger.local.asuser import acting_as
from banger.local.git import Scratch
from banger.local.gitbrought import existing
from banger.local.gitfiles import read_small, write_small
from banger.local.gitsource import Source

HEADS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")
_TEXTS = ("MERGE_MSG", "MERGE_MODE")
_HOME = (("rebase-merge", "rebase"), ("rebase-apply", "rebase"), ("BISECT_LOG", "bisection"))
_LINE = re.compile(rb"[0-9a-f]{40}\Z")
_MAX_HEADS = 64
"""An octopus has arms for a few."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """files: names below .git and their content. commits: that they name. notes: what stays home."""

    files: dict[str, bytes]
    commits: tuple[str, ...]
    notes: tuple[str, ...]


def find_under_way(scratch: Scratch, source: Source) -> UnderWay:
    """What of it is whole."""
    files: dict[str, bytes] = {}
    commits: list[str] = []
    with acting_as(source.account):
        git_dir = source.repository.git_dir
        found = {name: read_small(os.path.join(git_dir, name)) for name in (*HEADS, *_TEXTS)}
        home = {word for name, word in _HOME if os.path.lexists(os.path.join(git_dir, name))}
    notes = tuple(
        f"a {word} is under way here; the guest has the files, and not the {word}" for word in sorted(home)
    )
    for name in HEADS:
        lines = (found[name] or b"").splitlines()
        if not lines or len(lines) > _MAX_HEADS or not all(map(_LINE.match, lines)):
            continue
        ids = [line.decode("ascii") for line in lines]
        if set(ids) == existing(scratch, ids):
            files[name] = b"".join(line + b"\n" for line in lines)
            commits += ids
    if files:
        files |= {name: text for name in _TEXTS if (text := found[name]) is not None}
    return UnderWay(files, tuple(commits), notes)


def write_under_way(git_dir: str, under_way: UnderWay) -> None:
    for name, content in under_way.files.items():
        write_small(git_dir, name, content)
