"""What of a repository travels and what stays home: for `--dry-run`, for messages, for the travel itself.

For the CLI and local/gittravel.py. Looks at each tracked file once, by descriptor, and reads none. Writes
nothing.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace

from banger.local.asuser import acting_as
from banger.local.gitfacts import GITLINK, Entry, Repository
from banger.local.gitfiles import File, find_files
from banger.local.gitsource import FULL, METADATA, Source

MAX_LISTED = 10_000
"""Names of untracked files that are kept; they are only told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names are relative to the root, as os.fsdecode gives them: to be escaped on a terminal.

    files: that travel, sorted; bytes: in them (the history is not counted). untracked_left: not asked for (a
    folder of such is one name with / at its end). modified_left: tracked files that are otherwise than in the
    commit that travels. submodules_left: not checked out here. notes: whole sentences.
    """

    files: tuple[str, ...]
    bytes: int
    untracked_left: tuple[str, ...] = ()
    modified_left: tuple[str, ...] = ()
    submodules_left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """One repository's files now. missing: tracked, not there, and not left out by a sparse checkout."""

    files: list[File] = field(repr=False)
    missing: list[bytes]
    left: tuple[str, ...]
    tracked: frozenset[bytes] = field(repr=False)


def plan(source: Source) -> Plan:
    """What would travel now."""
    notes = _notes(source)
    if source.mode == METADATA:
        left = _untracked_left(source.repository)
        return Plan((), 0, left, _modified(source.repository), notes=notes)
    if not source.local_files:
        names, size = _in_commit(source)
        left = _untracked_left(source.repository)
        return Plan(names, size, left, _modified(source.repository), notes=notes)
    files: list[str] = []
    left_all: list[str] = []
    submodules: list[str] = []
    size = 0
    for prefix, one in with_submodules(source):
        if one is None:
            submodules.append(prefix.rstrip("/"))
            continue
        listing = list_files(one, one.entries)
        files += [prefix + os.fsdecode(file.path) for file in listing.files]
        left_all += [prefix + name for name in listing.left]
        size += sum(file.size for file in listing.files)
    return Plan(tuple(sorted(files)), size, tuple(left_all[:MAX_LISTED]), (), tuple(submodules), notes)


def with_submodules(source: Source, prefix: str = "") -> list[tuple[str, Source | None]]:
    """(`path/` below the first one's root, its source) of a repository and all that are in it."""
    found: list[tuple[str, Source | None]] = [(prefix, source)]
    for submodule in source.submodules:
        below = f"{prefix}{os.fsdecode(submodule.path)}/"
        found += with_submodules(submodule.source, below) if submodule.source else [(below, None)]
    return found


def list_files(source: Source, entries: tuple[Entry, ...]) -> Listing:
    """The files of the work tree that travel. entries: of its index."""
    tracked = {entry.path: entry for entry in entries if entry.mode != GITLINK}
    left: tuple[str, ...] = ()
    brought: list[bytes] = []
    if source.include_untracked:
        for name in _untracked(source.repository):
            # a repository of its own, which is no part of this one
            if name.endswith(b"/"):
                left = (*left, os.fsdecode(name))
            else:
                brought.append(name)
    else:
        left = _untracked_left(source.repository)
    with acting_as(source.account):
        files, gone = find_files(source.root, [*tracked, *brought])
    if source.repository.config.get("core.filemode") == "false":  # then only the index knows
        files = [_with_mode(file, tracked.get(file.path)) for file in files]
    missing = [path for path in gone if path in tracked and not tracked[path].skipped]
    return Listing(files, missing, left, frozenset(tracked))


def _with_mode(file: File, entry: Entry | None) -> File:
    if entry is None or not stat.S_ISREG(file.mode) or not entry.mode.startswith("100"):
        return file
    return replace(file, mode=stat.S_IFREG | int(entry.mode[3:], 8))


def _untracked(repository: Repository, *argv: str) -> list[bytes]:
    done = repository.git.run("ls-files", "--others", "--exclude-standard", "-z", *argv)
    return [name for name in done.stdout.split(b"\0") if name]


def _untracked_left(repository: Repository) -> tuple[str, ...]:
    names = _untracked(repository, "--directory", "--no-empty-directory")
    return tuple(os.fsdecode(name) for name in names[:MAX_LISTED])


def _in_commit(source: Source) -> tuple[tuple[str, ...], int]:
    done = source.repository.git.run("ls-tree", "-r", "-l", "-z", "--full-tree", source.base_commit)
    names: list[str] = []
    size = 0
    for record in done.stdout.split(b"\0"):
        facts, _, path = record.partition(b"\t")
        if path:
            names.append(os.fsdecode(path))
            size += int(facts.split()[3])
    return tuple(sorted(names)), size


def _modified(repository: Repository) -> tuple[str, ...]:
    """Staged, or by the look of the file. Nothing is read: a file that was only touched is among them."""
    how = ("--name-only", "--no-renames", "--no-ext-diff", "--ignore-submodules=all", "-z")
    unstaged = repository.git.run("diff-files", *how).stdout.split(b"\0")
    staged = repository.git.run("diff-index", "--cached", *how, repository.head_commit).stdout.split(b"\0")
    names = sorted({name for name in (*staged, *unstaged) if name})
    return tuple(os.fsdecode(name) for name in names[:MAX_LISTED])


def _notes(source: Source) -> tuple[str, ...]:
    notes: list[str] = []
    if source.mode == FULL and source.repository.config.get("core.sparsecheckout") == "true":
        notes.append("the work tree is a sparse checkout, and stays one")
    return tuple(notes)
