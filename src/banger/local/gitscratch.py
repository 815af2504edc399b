"""Makes the repository that goes into a guest: a bare folder of banger's own, from the user's objects.

For local/gittravel.py and the examination of partial clones. The user's object folder is an alternate while
it is made, so that nothing of their configuration is in reach of the commands that read objects; in the end
it has one pack of its own and borrows nothing. `build` fills a folder that the caller made and removes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass, field

from banger.errors import BangerError, ErrorCode
from banger.local.asuser import acting_as
from banger.local.git import GitFailed, Scratch
from banger.local.gitconfig import guest_config
from banger.local.gitfacts import GITLINK, Repository, read_entries
from banger.local.gitplan import Listing, list_files
from banger.local.gitsource import FULL, METADATA, Source

DEPTH = 50
"""Commits on each line of a shallow history, as `git clone --depth` counts."""
FIRST_LOOK = 2000
_ID = re.compile(rb"[0-9a-f]{40}\Z")
_MAX_SMALL = 64 << 20


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
        _lay_out(source, git_dir, worktree)
        os.mkdir(tree, 0o700)
    tips, names = _tips(source)
    try:
        if source.mode != FULL:
            _cut_history(scratch, source.base_commit)
        notes: tuple[str, ...] = ()
        listing = Listing([], [], (), frozenset())
        brought = source.base_commit
        index_tree = ""
        if source.mode != METADATA:
            if source.local_files:
                tree = source.root
                listing, index_tree, brought, notes = _take_files(scratch, source, folder, gitlinks)
            else:
                listing, index_tree = _check_out(scratch, source, tree)
        _pack(scratch, [*tips.values(), source.base_commit, brought])
    except GitFailed as error:
        raise _explained(error, source) from error
    branch = f"refs/heads/{source.branch_name}" if source.branch_name else ""
    packed = {**tips, "refs/banger/base": brought}
    if branch:
        packed[branch] = source.base_commit
    with acting_as(source.account):
        _write_refs(git_dir, packed, f"ref: {branch}" if branch else source.base_commit)
        _drop_unused(git_dir)
    refs = {"HEAD": source.base_commit, **names}
    if branch:
        refs[kept_name(os.fsencode(branch.removeprefix("refs/")))] = source.base_commit
    if index_tree:
        refs["index"] = index_tree
    if brought != source.base_commit:
        refs["worktree"] = brought
    return Built(git_dir, tree, listing, brought, refs, notes)


def check_objects(source: Source) -> None:
    """A partial clone may lack what a guest needs: found out by making it. INVALID_ARGUMENT."""
    from banger.local.gittravel import scratch_folder

    with scratch_folder(source.account) as folder:
        build(source, folder, {})


# the parts


def _lay_out(source: Source, git_dir: str, worktree: str) -> None:
    for name in ("", "objects", "objects/pack", "objects/info", "refs", "refs/heads", "refs/tags", "info"):
        os.mkdir(os.path.join(git_dir, name), 0o755)
    _write(git_dir, "HEAD", b"ref: refs/heads/none\n")
    _write(git_dir, "config", guest_config(source, worktree=worktree).encode("utf-8", "surrogateescape"))
    repository = source.repository
    for base, name in ((repository.common_dir, "shallow"), (repository.common_dir, "info/attributes")):
        _copy_small(os.path.join(base, name), os.path.join(git_dir, name))
    if repository.config.flag("core.sparsecheckout"):
        place = "info/sparse-checkout"
        _copy_small(os.path.join(repository.git_dir, place), os.path.join(git_dir, place))
    _write(git_dir, "info/exclude", _excludes(source))


def _excludes(source: Source) -> bytes:
    """What is ignored on the host is in the guest too; the guest has not the user's own list."""
    config = source.repository.config
    home = source.account.env.get("XDG_CONFIG_HOME") or os.path.join(source.account.home, ".config")
    own = config.get("core.excludesfile") or os.path.join(home, "git/ignore")
    if own.startswith("~/"):
        own = os.path.join(source.account.home, own[2:])
    both = (own, os.path.join(source.repository.common_dir, "info/exclude"))
    return b"".join((_read_small(path) or b"").rstrip(b"\n") + b"\n" for path in both)


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
        names[kept_name(ref.removeprefix(b"refs/"))] = commit.decode("ascii")
    return tips, names


def kept_name(name: bytes) -> str:
    """As a record has it: what is not UTF-8 or cannot be printed is %XX."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        letter if letter.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(letter))
        for letter in text
    )


def _cut_history(scratch: Scratch, base: str) -> None:
    """Writes `shallow`: the commits at DEPTH that have parents, besides where the user's own history ends."""
    parents = _parents(scratch, "--max-count", str(FIRST_LOOK), base)
    seen = {base}
    frontier = [base]
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
        old = (_read_small(os.path.join(scratch.folder, "shallow")) or b"").decode("ascii", "replace").split()
        _write(scratch.folder, "shallow", "".join(f"{i}\n" for i in sorted({*old, *cut})).encode())


def _parents(scratch: Scratch, *argv: str, input: str = "") -> dict[str, list[str]]:
    done = scratch.run("rev-list", "--parents", *argv, input=input.encode() if input else None)
    lines = done.stdout.decode("ascii").splitlines()
    return {line[:40]: line[41:].split() for line in lines}


def _take_files(
    scratch: Scratch, source: Source, folder: str, gitlinks: dict[bytes, str]
) -> tuple[Listing, str, str, tuple[str, ...]]:
    """(files, tree of the index or "" while it has conflicts, the brought commit, notes)."""
    index = os.path.join(scratch.folder, "index")
    with acting_as(source.account):
        _copy_index(source.repository, index)
    entries = read_entries(scratch.run)
    listing = list_files(source, entries)
    there = {file.path for file in listing.files}
    shown = [entry.path for entry in entries if entry.skipped and entry.path in there]
    _update(scratch, source.root, index, ("--force-write-index", "--clear-resolve-undo", "--no-split-index"))
    _update(scratch, source.root, index, ("--no-fsmonitor", "--no-untracked-cache"))
    if shown:  # as git does with files that a sparse checkout should have left out
        _update(scratch, source.root, index, ("--no-skip-worktree",), shown)
    index_tree = ""
    if not any(entry.stage for entry in entries):
        index_tree = scratch.line("write-tree")
    brought_index = os.path.join(folder, "brought")
    with acting_as(source.account):
        if os.path.exists(index):
            shutil.copyfile(index, brought_index)
    links = [entry.path for entry in entries if entry.mode == GITLINK]
    filtered, notes = _filtered(scratch, source, listing)
    removed = [*listing.missing, *links, *filtered]
    if removed:
        _update(scratch, source.root, brought_index, ("--force-remove",), removed)
    _update(scratch, source.root, brought_index, ("--add", "--replace"), [f.path for f in listing.files])
    kept = {entry.path: entry.object_id for entry in entries if entry.mode == GITLINK} | gitlinks
    if links:
        lines = b"".join(
            b"%s %s 0\t%s\0" % (GITLINK.encode(), kept[p].encode(), p) for p in dict.fromkeys(links)
        )
        scratch.run("update-index", "--index-info", "-z", tree=source.root, index=brought_index, input=lines)
    tree = scratch.line("write-tree", index=brought_index)
    return listing, index_tree, _commit(scratch, source.base_commit, tree), notes


def _update(
    scratch: Scratch, tree: str, index: str, argv: tuple[str, ...], paths: list[bytes] | None = None
) -> None:
    stdin = None if paths is None else b"".join(path + b"\0" for path in paths)
    more = () if paths is None else ("-z", "--stdin")
    scratch.run("update-index", *argv, *more, tree=tree, index=index, input=stdin)


def _commit(scratch: Scratch, base: str, tree: str) -> str:
    """The brought commit: of the same files always the same id. The base itself where nothing differs."""
    head = scratch.run("cat-file", "commit", base).stdout.partition(b"\n\n")[0]
    fields = dict(line.partition(b" ")[::2] for line in head.splitlines() if not line.startswith(b" "))
    if fields[b"tree"].decode() == tree:
        return base
    when = " ".join(fields[b"committer"].decode("utf-8", "replace").rsplit(" ", 2)[1:])
    dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    return scratch.line(
        "commit-tree", "-p", base, "-m", "The work tree as banger brought it", tree, env=dates
    )


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


def _check_out(scratch: Scratch, source: Source, tree: str) -> tuple[Listing, str]:
    """A clean checkout of the base commit, and its index."""
    scratch.run("read-tree", "--reset", "-u", source.base_commit, tree=tree)
    entries = read_entries(scratch.run)
    from banger.local.gitfiles import find_files

    with acting_as(source.account):
        files, _ = find_files(tree, [entry.path for entry in entries if entry.mode != GITLINK])
    paths = frozenset(entry.path for entry in entries)
    return Listing(files, [], (), paths), scratch.line("write-tree")


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
    _write(git_dir, "packed-refs", b"# pack-refs with: sorted \n" + b"".join(lines))
    _write(git_dir, "HEAD", head.encode() + b"\n")


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


# files


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
            shutil.copyfile(
                os.path.join(repository.git_dir, name), os.path.join(os.path.dirname(index), name)
            )


def _write(folder: str, name: str, data: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def _copy_small(source: str, to: str) -> None:
    data = _read_small(source)
    if data is not None:
        with open(to, "wb") as file:
            file.write(data)


def _read_small(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        return file.read(_MAX_SMALL) if stat.S_ISREG(os.fstat(fd).st_mode) else None
