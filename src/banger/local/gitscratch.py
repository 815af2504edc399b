"""Makes the repository that goes into a guest: a bare folder of banger's own, from the user's objects.

For local/gittravel.py and the examination of partial clones. The user's object folder is an alternate while
it is made, so that nothing of their configuration is in reach of the commands that read objects; in the end
it has one pack of its own and borrows nothing. `build` fills a folder that the caller made and removes.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field

from banger.errors import BangerError, ErrorCode
from banger.local.asuser import acting_as
from banger.local.git import GitFailed, Scratch
from banger.local.gitbrought import existing, take_files
from banger.local.gitconfig import guest_config
from banger.local.gitfacts import GITLINK, read_entries
from banger.local.gitfiles import copy_small, find_files, read_small, write_small
from banger.local.gitplan import Listing
from banger.local.gitsource import FULL, METADATA, Source
from banger.local.gitunderway import UnderWay, find_under_way, write_under_way
from banger.workspace.names import spelled

DEPTH = 50
"""Commits on each line of a shallow history, as `git clone --depth` counts."""
FIRST_LOOK = 2000
_ID = re.compile(rb"[0-9a-f]{40}\Z")


@dataclass(frozen=True, slots=True)
class Built:
    """git_dir: what becomes .git. tree: where the files are that travel (the user's root, or a checkout)."""

    git_dir: str
    tree: str
    listing: Listing = field(repr=False)
    brought_commit: str
    refs: dict[str, str]
    notes: tuple[str, ...]


def build(source: Source, folder: str, gitlinks: dict[bytes, str], *, worktree: str = "") -> Built:
    """In an empty folder of the user's. gitlinks: what is checked out in each submodule that comes along.

    worktree: where a submodule's files are in the guest, seen from its repository.
    """
    git_dir, tree = os.path.join(folder, "git"), os.path.join(folder, "tree")
    scratch = Scratch(git_dir, source.account, objects=source.repository.objects)
    with acting_as(source.account):
        _lay_out(source, git_dir)
        os.mkdir(tree, 0o700)
    tips, names = _tips(source)
    try:
        stashes = _stashes(scratch, source) if "refs/stash" in tips else []
        under_way = UnderWay({}, (), ())
        if source.mode != METADATA and source.local_files:
            under_way = find_under_way(scratch, source)
        others = [*tips.values(), *stashes, *under_way.commits]
        if source.mode != FULL:
            _cut_history(scratch, [source.base_commit, *under_way.commits])
        notes: tuple[str, ...] = ()
        listing = Listing([], [], (), frozenset())
        brought = source.base_commit
        index_tree = ""
        if source.mode != METADATA:
            if source.local_files:
                tree = source.root
                listing, index_tree, brought, notes = take_files(scratch, source, folder, gitlinks=gitlinks)
            else:
                listing, index_tree = _check_out(scratch, source, tree)
        _pack(scratch, [*others, source.base_commit, brought])
        _check_shallow(Scratch(git_dir, source.account))
    except GitFailed as error:
        raise _explained(error, source) from error
    branch = f"refs/heads/{source.branch_name}" if source.branch_name else ""
    packed = {**tips, "refs/banger/base": brought}
    if branch:
        packed[branch] = source.base_commit
    with acting_as(source.account):
        _write_refs(git_dir, packed, f"ref: {branch}" if branch else source.base_commit)
        _drop_unused(git_dir)
        write_under_way(git_dir, under_way)
        # only now: here that folder is another's
        write_small(git_dir, "config", os.fsencode(guest_config(source, worktree=worktree)))
    older = {f"stash-{number}": commit for number, commit in enumerate(reversed(stashes)) if number}
    merged = {f"other/MERGE_HEAD-{number}": commit for number, commit in enumerate(under_way.commits)}
    refs = {"HEAD": source.base_commit, **names, **older, **merged}
    if branch:
        refs[spelled(os.fsencode(branch.removeprefix("refs/")))] = source.base_commit
    if index_tree:
        refs["index"] = index_tree
    if brought != source.base_commit:
        refs["worktree"] = brought
    return Built(git_dir, tree, listing, brought, refs, (*notes, *under_way.notes))


# the parts


def _lay_out(source: Source, git_dir: str) -> None:
    for name in ("", "objects", "objects/pack", "objects/info", "refs", "refs/heads", "refs/tags", "info"):
        os.mkdir(os.path.join(git_dir, name), 0o755)
    write_small(git_dir, "HEAD", b"ref: refs/heads/none\n")
    write_small(git_dir, "config", os.fsencode(guest_config(source)))
    repository = source.repository
    for base, name in ((repository.common_dir, "shallow"), (repository.common_dir, "info/attributes")):
        copy_small(os.path.join(base, name), os.path.join(git_dir, name))
    if repository.config.flag("core.sparsecheckout"):
        place = "info/sparse-checkout"
        copy_small(os.path.join(repository.git_dir, place), os.path.join(git_dir, place))
    write_small(git_dir, "info/exclude", _excludes(source))


def _excludes(source: Source) -> bytes:
    """What is ignored on the host is in the guest too; the guest has not the user's own list."""
    config = source.repository.config
    home = source.account.env.get("XDG_CONFIG_HOME") or os.path.join(source.account.home, ".config")
    own = config.get("core.excludesfile") or os.path.join(home, "git/ignore")
    if own.startswith("~/"):
        own = os.path.join(source.account.home, own[2:])
    both = (own, os.path.join(source.repository.common_dir, "info/exclude"))
    texts = [read_small(path) for path in both if path.startswith("/")]
    return b"".join(text.rstrip(b"\n") + b"\n" for text in texts if text)


def _tips(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """(full ref names, names for the record) of what travels besides the guest's branch."""
    if source.mode != FULL:
        return {}, {}
    git = source.repository.git
    listed = git.run(
        "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/stash"
    )
    tips: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        commit, _, ref = line.partition(b" ")
        tips[os.fsdecode(ref)] = commit.decode("ascii")
        names[spelled(ref.removeprefix(b"refs/"))] = commit.decode("ascii")
    return tips, names


def _stashes(scratch: Scratch, source: Source) -> list[str]:
    """The commits of `git stash list`, oldest first; the list itself is written."""
    with acting_as(source.account):
        log = read_small(os.path.join(source.repository.common_dir, "logs/refs/stash")) or b""
    lines = [line for line in log.splitlines(keepends=True) if _ID.match(line[41:81])]
    there = existing(scratch, [line[41:81].decode() for line in lines])
    lines = [line for line in lines if line[41:81].decode() in there]
    with acting_as(source.account):
        os.makedirs(os.path.join(scratch.folder, "logs/refs"), exist_ok=True)
        write_small(scratch.folder, "logs/refs/stash", b"".join(lines))
    return [line[41:81].decode() for line in lines]


def _check_shallow(alone: Scratch) -> None:
    """Only what is there may be said to be where history ends."""
    with acting_as(alone.account):
        said = (read_small(os.path.join(alone.folder, "shallow")) or b"").decode("ascii", "replace").split()
    if not said:
        return
    there = existing(alone, said)
    with acting_as(alone.account):
        if there:
            write_small(alone.folder, "shallow", "".join(f"{i}\n" for i in said if i in there).encode())
        else:
            os.unlink(os.path.join(alone.folder, "shallow"))


def _cut_history(scratch: Scratch, tips: list[str]) -> None:
    """Writes `shallow`: the commits at DEPTH that have parents, besides where the user's own history ends."""
    parents = _parents(scratch, "--max-count", str(FIRST_LOOK), *tips)
    seen = set(tips)
    frontier = list(dict.fromkeys(tips))
    for _ in range(DEPTH - 1):
        unknown = [commit for commit in frontier if commit not in parents]
        if unknown:
            parents |= _parents(scratch, "--no-walk=unsorted", "--stdin", input="\n".join(unknown))
        frontier = list(dict.fromkeys(p for c in frontier for p in parents.get(c, ()) if p not in seen))
        seen.update(frontier)
        if not frontier:
            return
    unknown = [commit for commit in frontier if commit not in parents]
    if unknown:
        parents |= _parents(scratch, "--no-walk=unsorted", "--stdin", input="\n".join(unknown))
    cut = [commit for commit in frontier if parents.get(commit)]
    with acting_as(scratch.account):
        old = (read_small(os.path.join(scratch.folder, "shallow")) or b"").decode("ascii", "replace").split()
        write_small(scratch.folder, "shallow", "".join(f"{i}\n" for i in sorted({*old, *cut})).encode())


def _parents(scratch: Scratch, *argv: str, input: str = "") -> dict[str, list[str]]:
    done = scratch.run("rev-list", "--parents", *argv, input=input.encode() if input else None)
    lines = done.stdout.decode("ascii").splitlines()
    return {line[:40]: line[41:].split() for line in lines}


def _check_out(scratch: Scratch, source: Source, tree: str) -> tuple[Listing, str]:
    """A clean checkout of the base commit, and its index."""
    scratch.run("read-tree", "--reset", "-u", source.base_commit, tree=tree)
    entries = read_entries(scratch.run)
    with acting_as(source.account):
        files, _ = find_files(tree, [entry.path for entry in entries if entry.mode != GITLINK])
    paths = frozenset(entry.path for entry in entries)
    return Listing(files, [], (), paths), scratch.line("rev-parse", f"{source.base_commit}^{{tree}}")


def _pack(scratch: Scratch, tips: list[str]) -> None:
    """All that is needed, and no more, as one pack of its own."""
    listed = "".join(f"{tip}\n" for tip in dict.fromkeys(tips)).encode()
    name = os.path.join(scratch.folder, "objects/pack/pack")
    made = scratch.run("pack-objects", "--revs", "--indexed-objects", "--quiet", name, input=listed).stdout
    kept = tuple(f"pack-{packed.decode('ascii')}." for packed in made.split())
    with acting_as(scratch.account):
        for other in os.listdir(os.path.dirname(name)):
            if not other.startswith(kept):  # a large file is put into a pack by itself at first
                os.unlink(os.path.join(os.path.dirname(name), other))


def _write_refs(git_dir: str, refs: dict[str, str], head: str) -> None:
    lines = sorted(f"{commit} {name}\n".encode("utf-8", "surrogateescape") for name, commit in refs.items())
    lines.sort(key=lambda line: line[41:])
    write_small(git_dir, "packed-refs", b"# pack-refs with: sorted \n" + b"".join(lines))
    write_small(git_dir, "HEAD", head.encode() + b"\n")


def _drop_unused(git_dir: str) -> None:
    """Loose objects are in the pack, and the index is whole."""
    for name in os.listdir(git_dir):
        if name.startswith("sharedindex."):
            os.unlink(os.path.join(git_dir, name))
    objects = os.path.join(git_dir, "objects")
    for name in os.listdir(objects):
        if name not in ("pack", "info"):
            shutil.rmtree(os.path.join(objects, name))


def _explained(error: GitFailed, source: Source) -> BangerError:
    if not source.repository.is_partial:
        return BangerError(
            ErrorCode.COMMAND_FAILED,
            f"the repository cannot be read: {error.message[:300]}",
            details=error.details,
            hint=f"git -C {source.root} fsck says what is missing or damaged",
        )
    return BangerError(
        ErrorCode.INVALID_ARGUMENT,
        "the repository is a partial clone, and objects that a guest would need are not here",
        details=error.details,
        hint=f"fetch them first: git -C {source.root} fetch --refetch --no-filter",
    )
