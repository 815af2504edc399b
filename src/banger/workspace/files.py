"""The files of a repository as trees: of what is staged and of the work tree, by copies of the index.

Used by snapshot alone. The repository's own index is never written; the copies are in its scratch folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from banger.model.work import WorkChanges
from banger.workspace.errors import GitFailed
from banger.workspace.repository import LISTING, GitResult, Repository, existing, object_id, together

MAX_LOST_SUBS = 100
_SHOWN = 3
_NO_ROOM = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "unable to create temporary file",
    "unable to write",
    "insufficient permission for adding an object",
    "index.lock",
)
"""Words of git's (LC_ALL=C) when the repository cannot be written, not when a file cannot be read."""
_LARGE_AS_THEY_ARE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "pack.compression",
    "GIT_CONFIG_VALUE_0": "0",
}
"""Files that git streams (core.bigFileThreshold) it packs at once: for an emulated guest, compressing them is
most of the work of a keep. Others are compressed as ever."""
_GITLINK = b"160000"
_EMPTY_TREES = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""git knows them without having them."""


@dataclass(slots=True)
class Files:
    """index_tree: of what is staged, "" where there is no index that can be read. tree: of the work tree.

    changes: without `ahead`. subs: the repositories inside, by path.
    """

    tree: str
    index_tree: str = ""
    has_index: bool = False
    changes: WorkChanges = field(default_factory=WorkChanges)
    subs: dict[bytes, Repository] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Listing:
    """What an index says of its entries."""

    plain: bool = True
    unmerged: dict[bytes, bytes] = field(default_factory=dict)  # path -> `mode id` of our side, or b""
    gitlinks: dict[bytes, str] = field(default_factory=dict)
    assumed: list[bytes] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)


def empty_tree(like: str) -> str:
    """The id of the tree without entries. like: any id of the repository."""
    return _EMPTY_TREES[len(like)]


async def snapshot_files(repository: Repository, head: str, *, ignored: bool) -> Files:
    """head: the commit, or "". Raises GitFailed, also when the repository cannot be written."""
    scratch = await repository.scratch()
    nested = await repository.nested()
    work = _Index(repository, f"{scratch}/worktree")
    found = Files(tree="")
    found.has_index = await repository.copy_index(work.path)
    listing = _Listing()
    if found.has_index:
        try:
            listing, tree = await together(work.listing(), work.tree_if_merged())
            found.index_tree = tree or await _staged_tree(work, f"{scratch}/staged", listing)
        except GitFailed as error:
            _demand_room(error.details or "")
            found.notes.append("The index is damaged: what was staged is not kept apart, the files are.")
            listing = _Listing()
            found.index_tree = ""
            work = _Index(repository, f"{scratch}/anew")
    if not found.index_tree and head:
        await work.run("read-tree", head)
        listing = await work.listing()
    if listing.unmerged:
        found.notes.append(
            f"{len(listing.unmerged)} files are in conflict: as they are now they are in worktree, "
            "and index has our side of them."
        )
    await _show_all(work, listing)
    await _add(work, found, nested=nested, ignored=ignored)
    for path, link in listing.gitlinks.items():
        await _take_inside(work, found, path, link)
    for path in nested:
        await _link_nested(work, found, path, ignored=ignored)
    found.tree = await work.tree()
    await _count(work, found, head, conflicts=len(listing.unmerged))
    return found


class _Index:
    """git with an index file of ours."""

    def __init__(self, repository: Repository, path: str) -> None:
        self.repository = repository
        self.path = path

    async def git(self, *argv: str, stdin: bytes | None = None) -> GitResult:
        env = {"GIT_INDEX_FILE": self.path, **_LARGE_AS_THEY_ARE}
        return await self.repository.git(*argv, stdin=stdin, env=env, most=LISTING)

    async def run(self, *argv: str, stdin: bytes | None = None) -> GitResult:
        ended = await self.git(*argv, stdin=stdin)
        if ended.status:
            _demand_room(ended.stderr)
            raise GitFailed(argv[0], "failed", details=ended.stderr)
        return ended

    async def tree(self) -> str:
        return object_id((await self.run("write-tree")).stdout, "write-tree")

    async def tree_if_merged(self) -> str:
        """ "" where git makes none: files are in conflict, or the index is damaged."""
        made = await self.git("write-tree")
        if made.status:
            _demand_room(made.stderr)
            return ""
        return object_id(made.stdout, "write-tree")

    async def update(self, option: str, paths: Sequence[bytes]) -> None:
        if paths:
            await self.run("update-index", option, "-z", "--stdin", stdin=b"".join(p + b"\0" for p in paths))

    async def put(self, entries: Mapping[bytes, bytes]) -> None:
        """path -> `mode id`."""
        if entries:
            lines = b"".join(words + b"\t" + path + b"\0" for path, words in entries.items())
            await self.run("update-index", "-z", "--index-info", stdin=lines)

    async def listing(self) -> _Listing:
        found = _Listing()
        for entry in (await self.run("ls-files", "-s", "-v", "-z")).stdout.split(b"\0")[:-1]:
            words, _, path = entry.partition(b"\t")
            parts = words.split(b" ")
            if len(parts) != 4:
                raise GitFailed("ls-files", "answered nonsense")
            tag, mode, identifier, stage = parts
            if stage != b"0":
                ours = mode + b" " + identifier if stage == b"2" else b""
                found.unmerged[path] = found.unmerged.get(path) or ours
                continue
            if mode == _GITLINK:
                found.gitlinks[path] = object_id(identifier, "ls-files")
            if tag.islower():
                found.assumed.append(path)
            if tag.upper() == b"S":
                found.skipped.append(path)
        return found


async def _staged_tree(work: _Index, path: str, listing: _Listing) -> str:
    """The tree of what is staged, where files are in conflict: our side of them stands in it."""
    staged = _Index(work.repository, path)
    await work.repository.copy_index(path)
    await staged.update("--force-remove", list(listing.unmerged))
    await staged.put({file: words for file, words in listing.unmerged.items() if words})
    return await staged.tree()


async def _show_all(work: _Index, listing: _Listing) -> None:
    """Make git look at every file: also those it was told to take as unchanged or as not checked out."""
    await work.update("--no-assume-unchanged", listing.assumed)
    if listing.skipped:
        await work.update("--no-skip-worktree", listing.skipped)
        missing = set((await work.run("ls-files", "-d", "-z")).stdout.split(b"\0"))
        await work.update("--skip-worktree", [path for path in listing.skipped if path in missing])


async def _add(work: _Index, found: Files, *, nested: Sequence[bytes], ignored: bool) -> None:
    force = ("-f",) if ignored else ()
    specs = b"".join(b":(exclude,literal)" + path + b"\0" for path in nested)
    if nested:
        spec_words: tuple[str, ...] = ("--pathspec-from-file=-", "--pathspec-file-nul")
        added = await work.git("add", "-A", *force, "--ignore-errors", *spec_words, stdin=b":(top)\0" + specs)
    else:
        added = await work.git("add", "-A", *force, "--ignore-errors", "--", ".")
    _demand_room(added.stderr)
    if not added.status:
        return
    if added.status != 1:
        raise GitFailed("add", "failed", details=added.stderr)
    exclude = () if ignored else ("--exclude-standard",)
    left = (await work.run("ls-files", "-o", *exclude, "-z")).stdout.split(b"\0")[:-1]
    left += (await work.run("ls-files", "-m", "-z")).stdout.split(b"\0")[:-1]
    unread = []
    for path in left:
        sub = await work.repository.sub(path.rstrip(b"/")) if path.endswith(b"/") else None
        if sub is not None:
            found.subs[path.rstrip(b"/")] = sub  # without a commit, so that git cannot name it in a tree
        elif path.rstrip(b"/") not in nested:
            unread.append(path)
    if unread:
        found.notes.append(f"{len(unread)} files could not be read and are not kept: {_some(unread)}.")


async def _take_inside(work: _Index, found: Files, path: bytes, link: str) -> None:
    """A submodule's place: the repository inside; or files where its repository is gone."""
    sub = await work.repository.sub(path)
    if sub is not None:
        found.subs[path] = sub
        return
    if len(found.subs) > MAX_LOST_SUBS:
        return
    name = os.fsdecode(path)
    await work.update("--force-remove", [path])
    added = await work.git("--literal-pathspecs", "add", "-A", "--ignore-errors", "--", name)
    _demand_room(added.stderr)
    kept = await work.run("--literal-pathspecs", "ls-files", "-z", "--", name)
    if not kept.stdout:
        await work.put({path: _GITLINK + b" " + link.encode()})


async def _link_nested(work: _Index, found: Files, path: bytes, *, ignored: bool) -> None:
    """A repository inside that git was not let near: named in the tree by its HEAD, as git would."""
    if path in found.subs:
        sub: Repository | None = found.subs[path]
    else:
        if not ignored:
            hidden = await work.git("check-ignore", "-q", "-z", "--stdin", stdin=path + b"\0")
            if not hidden.status:
                return
        sub = await work.repository.sub(path)
    if sub is None:
        return
    found.subs[path] = sub
    head = await existing(sub, ["HEAD^{commit}"])
    for commit, _ in head.values():
        await work.put({path: _GITLINK + b" " + commit.encode()})


async def _count(work: _Index, found: Files, head: str, *, conflicts: int) -> None:
    repository = work.repository
    below = f"{head}^{{tree}}" if head else ""
    at_head, _ = (await existing(repository, [below])).get(below, (empty_tree(found.tree), ""))
    at_index = found.index_tree or at_head
    staged, files = await _changed(work, (at_head, at_index), (at_index, found.tree))
    untracked = sum(1 for status, _, _ in files if status == b"A")
    for status, mode, path in files:
        if status == b"A" and mode == _GITLINK and path not in found.subs:
            sub = await repository.sub(path)
            if sub is not None:
                found.subs[path] = sub
    found.changes = WorkChanges(
        staged=len(staged),
        unstaged=len(files) - untracked,
        untracked=untracked,
        conflicts=conflicts,
    )


async def _changed(work: _Index, *pairs: tuple[str, str]) -> list[list[tuple[bytes, bytes, bytes]]]:
    """For each pair of trees (status letter, new mode, path) of each file that differs."""
    asked = [pair for pair in pairs if pair[0] != pair[1]]
    if not asked:
        return [[] for _ in pairs]
    # with our index, though it is not asked: git reads one, and the repository's own may be damaged
    listed = await work.run(
        *("diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", "--ignore-submodules=none"),
        stdin="".join(f"{old} {new}\n" for old, new in asked).encode(),
    )
    found: dict[bytes, list[tuple[bytes, bytes, bytes]]] = {}
    rows: list[tuple[bytes, bytes, bytes]] | None = None
    words = listed.stdout.split(b"\0")
    for meta, path in zip(words[::2], words[1::2], strict=False):
        *pair, entry = meta.split(b"\n")  # the pair's own line, before the first that differs in it
        if pair:
            rows = found.setdefault(pair[-1], [])
        parts = entry.split(b" ")
        if rows is None or len(parts) != 5:
            raise GitFailed("diff-tree", "answered nonsense")
        rows.append((parts[4][:1], parts[1], path))
    return [found.get(f"{old} {new}".encode(), []) for old, new in pairs]


def _demand_room(stderr: str) -> None:
    for words in _NO_ROOM:
        if words in stderr:
            raise GitFailed("add", f"cannot write to the repository ({words})", details=stderr)


def _some(paths: Sequence[bytes]) -> str:
    shown = ", ".join(ascii(os.fsdecode(path)) for path in paths[:_SHOWN])
    return shown + (", …" if len(paths) > _SHOWN else "")
