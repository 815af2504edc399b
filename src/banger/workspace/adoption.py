"""A hostile `.git`, staged on the host, made into a git folder of ours: only what is harmless goes over.

Used by HostRepository alone. No configuration, hook, alternate, graft or pack index of the guest's is
taken: objects, refs, reflogs, HEAD, index, excludes and attributes are, as regular files by name. The
staged files lie in a private folder that nobody writes any more. Blocking; leaves what the caller sweeps.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_REFS = 100_000
MAX_NESTED = 1_000
_SMALL = 4 << 10
_LARGE = 1 << 30
_GITFILE = re.compile(rb"gitdir: ([^\0\n]{1,4000})\n*\Z")
_FANOUT = re.compile(rb"[0-9a-f]{2}\Z")
_LOOSE = re.compile(rb"(?:[0-9a-f]{38}|[0-9a-f]{62})\Z")
_HEAD = re.compile(rb"(?:ref: refs/[^\0\n]{1,4000}|[0-9a-f]{40}|[0-9a-f]{64})\n*\Z")
_SHARED_INDEX = re.compile(rb"sharedindex\.[0-9a-f]{40,64}\Z")
_PACKED = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) (refs/[^\0-\40\177~^:?*\\\[]{1,4000})\Z")
_PEELED = re.compile(rb"\^(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_BAD_PART = re.compile(rb"(?:\A|/)(?:\.|/|\Z)|\.\.|@\{|\.(?:lock)?(?:/|\Z)")
"""What git refuses in a ref's name besides single letters (git-check-ref-format(1))."""
_CARRIED = (b"shallow", b"info/exclude", b"info/attributes", b"logs/HEAD", b"logs/refs/stash")
"""Attributes name drivers, and no configuration of ours has one."""

STATES = (b"MERGE_HEAD", b"CHERRY_PICK_HEAD", b"REVERT_HEAD", b"REBASE_HEAD", b"ORIG_HEAD")
"""Commits that an operation under way names."""


@dataclass(frozen=True, slots=True)
class StagedGit:
    """folder: the (work tree's own) git folder; common: where its objects and refs are."""

    folder: bytes
    common: bytes


@dataclass(slots=True)
class StagedTree:
    """root: the outermost staged work tree. moved: nested `.git`s, path -> where it is now."""

    root: bytes
    known_as: bytes
    moved: dict[bytes, bytes] = field(default_factory=dict)

    def now_at(self, path: bytes) -> bytes:
        """Where something below root is, when it is in a `.git` that was moved."""
        for place in sorted(self.moved, key=len, reverse=True):
            whole = self.root + b"/" + place + b"/.git"
            if path == whole or path.startswith(whole + b"/"):
                return self.moved[place] + path[len(whole) :]
        return path


def hide_nested(tree: StagedTree, folder: bytes) -> None:
    """Move every `.git` below the work tree (its own stays) to `folder`: the host's git must not see them."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found: list[bytes] = []
    for where, folders, files in os.walk(tree.root):
        inside = where[len(tree.root) + 1 :]
        if b".git" in folders or b".git" in files:
            if inside:
                found.append(inside)
            with contextlib.suppress(ValueError):
                folders.remove(b".git")
    for number, inside in enumerate(sorted(found)):
        target = b"%s/%d" % (folder, number)
        os.rename(tree.root + b"/" + inside + b"/.git", target)
        if number < MAX_NESTED:
            tree.moved[inside] = target


def locate(tree: StagedTree, path: bytes) -> StagedGit | None:
    """The git folder of the work tree at `path` ("" is the outermost), inside what was staged, or None."""
    at = tree.root + b"/" + path if path else tree.root
    git = tree.moved.get(path) if path else at + b"/.git"
    if git is None:
        return None
    if _is_file(git):
        match = _GITFILE.match(_content(git, _SMALL) or b"")
        found = _inside(tree, at, match[1]) if match else None
        if found is None:
            return None
        git = found
    if not _is_folder(git):
        return None
    common = git
    pointer = _content(git + b"/commondir", _SMALL)
    if pointer is not None:
        found = _inside(tree, git, pointer.rstrip(b"\n"))
        if found is None or not _is_folder(found):
            return None
        common = found
    return StagedGit(git, common) if _is_folder(common + b"/objects") else None


def _inside(tree: StagedTree, base: bytes, pointer: bytes) -> bytes | None:
    """What a path of the guest's means in the staged files; None outside of them or through a link."""
    if pointer.startswith(tree.known_as + b"/"):
        pointer, base = pointer[len(tree.known_as) + 1 :], tree.root
    elif pointer.startswith(b"/"):
        return None
    path = os.path.normpath(base + b"/" + pointer)
    if not path.startswith(tree.root + b"/"):
        return None
    path = tree.now_at(path)
    # where it is now: below the staged root, or below the folder of moved ones; no part of it a link
    top = tree.root if path.startswith(tree.root + b"/") else os.path.dirname(next(iter(tree.moved.values())))
    at = top
    for part in path[len(top) + 1 :].split(b"/"):
        at += b"/" + part
        if not _is_folder(at):
            return None
    return path


def carry_over(staged: StagedGit, own: bytes) -> list[str]:
    """Fill the empty git folder `own`. Returns notes. Packs are linked; their indexes the caller makes."""
    notes: list[str] = []
    head = _content(staged.folder + b"/HEAD", _SMALL)
    if head is None or not _HEAD.match(head):
        head = b"ref: refs/heads/head-was-damaged\n"
        notes.append("HEAD is damaged: which branch or commit was checked out is not known.")
    _write(own + b"/HEAD", head)
    for name in STATES:
        _copy(staged.folder + b"/" + name, own + b"/" + name, most=_SMALL)
    _copy(staged.folder + b"/index", own + b"/index", most=_LARGE)
    for entry in _entries(staged.folder):
        if _SHARED_INDEX.match(entry.name):
            _copy(entry.path, own + b"/" + entry.name, most=_LARGE)
    for name in _CARRIED:
        source = staged.folder if name == b"logs/HEAD" else staged.common
        _copy(source + b"/" + name, own + b"/" + name, most=64 << 20)
    notes += _carry_packed_refs(staged.common + b"/packed-refs", own + b"/packed-refs")
    if not _carry_refs(staged.common + b"/refs", own + b"/refs"):
        notes.append(f"There are more than {MAX_REFS} refs: the rest of them is not kept.")
    _link_objects(staged.common + b"/objects", own + b"/objects")
    return notes


def _carry_packed_refs(source: bytes, target: bytes) -> list[str]:
    """Without the lines that git would stumble over: for one of them it shows no ref at all."""
    content = _content(source, 64 << 20)
    if content is None:
        return []
    kept: list[bytes] = []
    left_out, takes_peeled = 0, False
    for line in content.splitlines():
        match = _PACKED.match(line)
        good = bool(match and not _BAD_PART.search(match[2]))
        if good or (takes_peeled and _PEELED.match(line)):
            kept.append(line)
        elif not line.startswith((b"#", b"^")):  # the header's promises (sorted, peeled) are not needed
            left_out += 1
        takes_peeled = good
    _write(target, b"".join(line + b"\n" for line in kept))
    return [f"packed-refs is damaged: {left_out} of its lines are left out."] if left_out else []


def _carry_refs(source: bytes, target: bytes) -> bool:
    count = 0
    for where, _, files in os.walk(source):
        inside = where[len(source) :]
        for name in files:
            if name.endswith(b".lock"):
                continue
            count += 1
            if count > MAX_REFS:
                return False
            _copy(where + b"/" + name, target + inside + b"/" + name, most=_SMALL)
    return True


def _link_objects(source: bytes, target: bytes) -> None:
    for entry in _entries(source):
        if not entry.is_dir(follow_symlinks=False):
            continue
        if _FANOUT.match(entry.name):
            names = [e.name for e in _entries(entry.path) if _LOOSE.match(e.name)]
        elif entry.name == b"pack":
            names = [e.name for e in _entries(entry.path) if e.name.endswith(b".pack")]
        else:
            continue
        os.makedirs(target + b"/" + entry.name, exist_ok=True)
        for number, name in enumerate(sorted(names)):
            here = b"pack-%040x.pack" % number if entry.name == b"pack" else name
            if _is_file(entry.path + b"/" + name):
                os.link(entry.path + b"/" + name, target + b"/" + entry.name + b"/" + here)


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _is_folder(path: bytes) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _is_file(path: bytes) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _content(path: bytes, most: int) -> bytes | None:
    """A regular file's content, None for anything else or anything larger."""
    if not _is_file(path) or os.lstat(path).st_size > most:
        return None
    with open(path, "rb") as file:
        return file.read(most)


def _copy(source: bytes, target: bytes, *, most: int) -> None:
    """With its time: git's racy check compares the index's with the files'."""
    if not _is_file(source) or os.lstat(source).st_size > most:
        return
    if not _no_links_above(source):
        return
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
    times = os.lstat(source)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _no_links_above(path: bytes) -> bool:
    """The few folders between a git folder and the file (info/, logs/refs/) are folders, not links."""
    parents = [os.path.dirname(path), os.path.dirname(os.path.dirname(path))]
    return all(_is_folder(parent) for parent in parents)


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
