"""The index that goes along, and the commit of exactly the files that travel: what banger brought.

For local/gitscratch.py. Everything is done on copies of the user's index, in a scratch repository that has
their objects as an alternate. Where git would write an object that the user has already, it touches their
file ("freshens" it): so what is written is written without the alternate, or after a look that it is not
there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence

from banger.local.asuser import acting_as
from banger.local.git import Scratch
from banger.local.gitfacts import GITLINK, Entry, Repository, read_entries
from banger.local.gitfiles import changed
from banger.local.gitplan import Listing, list_files
from banger.local.gitsource import Source

_WHEN = re.compile(rb"[0-9]{1,12} [+-][0-9]{4}\Z")
_MESSAGE = b"The work tree as banger brought it\n"


def take_files(
    scratch: Scratch, source: Source, folder: str, *, gitlinks: dict[bytes, str]
) -> tuple[Listing, str, str, tuple[str, ...]]:
    """(files, tree of the index or "" while it has conflicts, the brought commit, notes).

    The guest's index is the scratch's own afterwards. gitlinks: what is checked out in submodules.
    """
    alone = Scratch(scratch.folder, source.account)
    index = os.path.join(scratch.folder, "index")
    with acting_as(source.account):
        _copy_index(source.repository, index)
    entries = read_entries(scratch.run)
    listing = list_files(source, entries)
    there = {file.path for file in listing.files}
    shown = [entry.path for entry in entries if entry.skipped and entry.path in there]
    whole = ("--force-write-index", "--clear-resolve-undo", "--no-split-index", "--no-fsmonitor")
    _update(scratch, source.root, index, (*whole, "--no-untracked-cache"))
    if shown and source.repository.config.flag(
        "core.sparsecheckout"
    ):  # as git does with what is there anyway
        _update(scratch, source.root, index, ("--no-skip-worktree",), shown)
    index_tree = ""
    if not any(entry.stage for entry in entries):
        index_tree = alone.line("write-tree", "--missing-ok")
    filtered, notes = _filtered(scratch, source, listing)
    brought = _Brought(scratch, alone, source.root, folder, index)
    links = {entry.path: entry.object_id for entry in entries if entry.mode == GITLINK}
    links |= {path: commit for path, commit in gitlinks.items() if path in links}
    paths = [file.path for file in listing.files]
    tree = brought.tree(entries, paths, removed=[*listing.missing, *filtered], links=links)
    return listing, index_tree, _commit(scratch, alone, source.base_commit, tree), notes


class _Brought:
    """The tree of the files as they are, by an index of its own."""

    def __init__(self, scratch: Scratch, alone: Scratch, root: str, folder: str, index: str) -> None:
        self._scratch = scratch
        self._alone = alone
        self._root = root
        self._folder = folder
        self._index = index

    def tree(
        self,
        entries: Sequence[Entry],
        paths: list[bytes],
        *,
        removed: list[bytes],
        links: dict[bytes, str],
    ) -> str:
        """removed: what is not there, and what is read again whatever the index says of it."""
        gone = [*removed, *links]
        index = self._hashed("brought", paths, gone, argv=("--info-only",))
        ids = self._ids(index)
        known = {entry.object_id for entry in entries}
        new = [path for path in paths if ids.get(path, "") not in known]
        found = existing(self._scratch, {ids[path] for path in new if path in ids})
        new = [path for path in new if ids.get(path) not in found]
        if new:
            written = self._ids(self._hashed("written", new, gone))
            for path in new:
                if written.get(path) != ids.get(path):
                    raise changed(path)
        if links:
            lines = b"".join(
                b"%s %s 0\t%s\0" % (GITLINK.encode(), commit.encode(), path) for path, commit in links.items()
            )
            self._scratch.run("update-index", "-z", "--index-info", tree=self._root, index=index, input=lines)
        return self._alone.line("write-tree", "--missing-ok", index=index)

    def _hashed(
        self, name: str, paths: list[bytes], removed: list[bytes], *, argv: tuple[str, ...] = ()
    ) -> str:
        index = os.path.join(self._folder, name)
        with acting_as(self._scratch.account):
            if os.path.exists(self._index):
                shutil.copyfile(self._index, index)
        if removed:
            _update(self._scratch, self._root, index, ("--force-remove",), removed)
        _update(self._scratch, self._root, index, ("--add", "--replace", *argv), paths)
        return index

    def _ids(self, index: str) -> dict[bytes, str]:
        listed = self._scratch.run("ls-files", "--stage", "-z", index=index).stdout.split(b"\0")
        facts = (record.partition(b"\t") for record in listed if record)
        return {path: words.split()[1].decode("ascii") for words, _, path in facts}


def existing(scratch: Scratch, ids: Iterable[str]) -> set[str]:
    """Those of these objects that are there."""
    asked = "".join(f"{object_id}\n" for object_id in ids).encode()
    if not asked:
        return set()
    done = scratch.run("cat-file", "--batch-check=%(objectname)", input=asked)
    return {line for line in done.stdout.decode("ascii").splitlines() if not line.endswith(" missing")}


def _update(
    scratch: Scratch, tree: str, index: str, argv: tuple[str, ...], paths: list[bytes] | None = None
) -> None:
    stdin = None if paths is None else b"".join(path + b"\0" for path in paths)
    more = () if paths is None else ("-z", "--stdin")
    scratch.run("update-index", *argv, *more, tree=tree, index=index, input=stdin)


def _commit(scratch: Scratch, alone: Scratch, base: str, tree: str) -> str:
    """The brought commit: of the same files always the same id. The base itself where nothing differs."""
    head = scratch.run("cat-file", "commit", base).stdout.partition(b"\n\n")[0]
    fields: dict[bytes, bytes] = {}
    for line in head.splitlines():
        key, _, value = line.partition(b" ")
        fields.setdefault(key, value)
    if fields[b"tree"].decode() == tree:
        return base
    when = b" ".join(fields[b"committer"].rsplit(b" ", 2)[1:])
    who = b"banger <banger@localhost> " + (when if _WHEN.match(when) else b"0 +0000")
    text = b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\n" % (tree.encode(), base.encode(), who, who)
    # commit-tree would ask for tree and parent, and touch them
    done = alone.run("hash-object", "-t", "commit", "-w", "--stdin", input=text + _MESSAGE)
    return done.stdout.decode("ascii").strip()


def _filtered(scratch: Scratch, source: Source, listing: Listing) -> tuple[list[bytes], tuple[str, ...]]:
    """Files that a filter driver of the user's converts: the guest has none, and they come as they are."""
    drivers = set(source.repository.config.names("filter"))
    if not drivers or not listing.files:
        return [], ()
    stdin = b"".join(file.path + b"\0" for file in listing.files)
    done = scratch.run("check-attr", "-z", "--stdin", "filter", tree=source.root, input=stdin)
    words = done.stdout.split(b"\0")
    found: dict[str, list[bytes]] = {}
    for path, value in zip(words[0::3], words[2::3], strict=False):
        if os.fsdecode(value) in drivers:
            found.setdefault(os.fsdecode(value), []).append(path)
    notes = tuple(
        f"{len(paths)} files go through git's filter {driver!a}; they travel as they lie in your work tree"
        for driver, paths in sorted(found.items())
    )
    tracked = [path for paths in found.values() for path in paths if path in listing.tracked]
    return tracked, notes


def _copy_index(repository: Repository, index: str) -> None:
    """With its time, by which git knows which entries to look at again; and what a split one shares."""
    own = os.path.join(repository.git_dir, "index")
    try:
        with open(own, "rb") as file, open(index, "xb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return
    os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))
    for name in os.listdir(repository.git_dir):
        if name.startswith("sharedindex."):
            to = os.path.join(os.path.dirname(index), name)
            shutil.copyfile(os.path.join(repository.git_dir, name), to)
