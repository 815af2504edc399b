"""The snapshot: every commit and file of a repository as tips, its index and refs left untouched.

Used by WorkspaceService. take works on any Repository, and believes none: ids are matched, sizes and counts
capped. New objects (of what is staged, of the files) are written into the repository; its own index is copied
first. A crash leaves those objects, which git's own gc removes, and the repository's scratch folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import structs

from banger.model.work import WorkChanges
from banger.workspace.errors import GitFailed, NoRepository
from banger.workspace.files import Files, empty_tree, snapshot_files
from banger.workspace.history import History, read_history
from banger.workspace.names import kept_name, spelled, sub_prefix, untangled
from banger.workspace.repository import (
    LISTING,
    Repository,
    existing,
    is_object_id,
    object_id,
    text_of,
    together,
)

MAX_TIPS = 10_000
MAX_REFLOG = 1_000
MAX_SUBS = 200
MAX_DEPTH = 8
_DATES: Sequence[str] = ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE")
STAGED_SUBJECT = "banger: what is staged"
FILES_SUBJECT = "banger: the files"
_STATES = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "ORIG_HEAD")

OwnCommit = tuple[str, str, tuple[str, ...]]
"""What a commit of banger's own is: (subject, tree, parents)."""
Made = Mapping[OwnCommit, tuple[str, int]]
"""Those that the store has: id and time, in seconds. The same state is the same commit."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What is on the host already. refs: KeptRef names -> ids, `index` a tree's or commit's among them."""

    base_commit: str = ""
    brought_commit: str = ""
    metadata_only: bool = False
    refs: Mapping[str, str] = field(default_factory=dict)

    def commits(self) -> set[str]:
        """The ids whose history is on the host."""
        own = ("index", "worktree")  # what banger made of the user's
        ids = {commit for name, commit in self.refs.items() if name not in own and is_object_id(commit)}
        return ids | ({self.base_commit} if self.base_commit else set())


@dataclass(frozen=True, slots=True)
class Part:
    """One repository of a snapshot. prefix: "" or `sub/<path>/`.

    cuts: where the history of the tips and of brought_commit goes on on the host, or begins; None: nobody
    knows, it is damaged.
    """

    prefix: str
    repository: Repository
    tips: tuple[tuple[str, str], ...]  # names with the prefix -> ids
    cuts: frozenset[str] | None = frozenset()
    brought_commit: str = ""


@dataclass(slots=True)
class Snapshot:
    """parts: with the tips that are not as brought. tree: of the files of the outermost repository."""

    parts: list[Part] = field(default_factory=list)
    head: str = ""
    branch: str = ""
    tree: str = ""
    changes: WorkChanges = field(default_factory=WorkChanges)
    notes: list[str] = field(default_factory=list)

    async def aclose(self) -> None:
        """The scratch folders of the repositories inside; the outermost is its owner's to close."""
        for part in self.parts[1:]:
            await part.repository.aclose()


async def take(
    repository: Repository, brought: Brought, *, made: Made | None = None, ignored: bool = False
) -> Snapshot:
    """Raises WorkNotKept (GitFailed, NoRepository), and what the repository's git raises.

    ignored: files that git ignores are taken too. The caller closes snapshot and repository.
    """
    taking = _Taking(made or {}, ignored=ignored)
    try:
        await taking.one(repository, brought, prefix="", depth=0)
    except BaseException:
        await taking.snapshot.aclose()
        raise
    return taking.snapshot


class _Taking:
    def __init__(self, made: Made, *, ignored: bool) -> None:
        self.snapshot = Snapshot()
        self._made = made
        self._ignored = ignored
        self._subs = 0

    async def one(self, repository: Repository, brought: Brought, *, prefix: str, depth: int) -> None:
        place = f"In {prefix[4:-1]!a}: " if prefix else ""
        (refs, notes), head, _ = await together(_refs(repository), _head(repository), repository.prepare())
        at = len(self.snapshot.parts)
        # its place comes before those of the repositories inside
        self.snapshot.parts.append(Part(prefix, repository, ()))
        branch = await _branch(repository, refs, head)
        tips, lost = await _ref_tips(repository, brought, refs)
        if head and head not in brought.commits():
            tips["HEAD"] = head
        on_host = await _on_host(repository, brought, refs if prefix else ())
        if repository.linked:
            tips = {name: commit for name, commit in tips.items() if name == "HEAD"}
        files = await snapshot_files(repository, head, ignored=self._ignored)
        # only now: what is committed meanwhile is in the reflog
        there = await existing(repository, [f"{tip}^{{commit}}" for tip in tips.values()])
        peeled = {name.partition("^")[0]: commit for name, (commit, _) in there.items()}
        base = [] if prefix else list(await existing(repository, [brought.brought_commit]))
        history = await read_history(
            repository,
            [*peeled.values(), *base],
            await _otherwise_named(repository),
            without=on_host,
            heads=not repository.linked,
            need_whole=bool(prefix),
        )
        if prefix:
            # nobody said what it was brought with: refs count that have new commits
            new = history.commits
            tips = {name: tip for name, tip in tips.items() if tip not in peeled or peeled[tip] in new}
        beside = history.beside([*(peeled.get(tip, "") for tip in tips.values()), *base])
        ahead = await _ahead(repository, head, brought, on_host=on_host, history=history)
        await self._own_commits(repository, brought, head=head, files=files, tips=tips, history=history)
        tips |= {f"reflog/{commit[:12]}": commit for commit in beside}
        if len(tips) > MAX_TIPS:
            raise GitFailed("rev-list", f"lists more than {MAX_TIPS} commits that were not brought")
        commits = {peeled.get(tip, tip) for tip in tips.values()} & {*peeled.values(), *history.commits}
        self.snapshot.parts[at] = Part(
            prefix,
            repository,
            tuple((prefix + name, commit) for name, commit in sorted(tips.items())),
            history.cuts(commits | set(base)),
            "" if prefix else brought.brought_commit,
        )
        self.snapshot.notes += [place + note for note in (*notes, *lost, *repository.notes, *files.notes)]
        if not prefix:
            self.snapshot.head, self.snapshot.branch = head, branch
            self.snapshot.tree = files.tree
            self.snapshot.changes = structs.replace(files.changes, ahead=ahead)
        await self._inside(repository, brought, files, prefix=prefix, depth=depth)

    async def _inside(
        self, repository: Repository, brought: Brought, files: Files, *, prefix: str, depth: int
    ) -> None:
        """The repositories inside, each as the outermost is taken."""
        if not files.subs:
            return
        pinned = await _pinned(repository, brought.brought_commit or brought.base_commit, list(files.subs))
        for path, sub in files.subs.items():
            name = sub_prefix(path)
            if depth >= MAX_DEPTH or self._subs >= MAX_SUBS:
                self.snapshot.notes.append(
                    f"There are too many repositories inside: {os.fsdecode(path)!a} and others are not kept."
                )
                await sub.aclose()
                continue
            self._subs += 1
            refs = {
                known[len(name) :]: commit for known, commit in brought.refs.items() if known.startswith(name)
            }
            base = pinned.get(path, refs.get("HEAD", ""))
            around = {f"around/{number}": commit for number, commit in enumerate(brought.commits())}
            inner = Brought(
                base_commit=base, brought_commit=refs.get("worktree", ""), refs={**around, **refs}
            )
            try:
                await self.one(sub, inner, prefix=prefix + name, depth=depth + 1)
            except NoRepository:
                self.snapshot.notes.append(f"The repository inside at {os.fsdecode(path)!a} is damaged.")

    async def _own_commits(
        self,
        repository: Repository,
        brought: Brought,
        *,
        head: str,
        files: Files,
        tips: dict[str, str],
        history: History,
    ) -> None:
        """The tips `index` and `worktree`, where they are not in HEAD, nor as brought."""
        trees = await _trees(repository, [head, brought.brought_commit, brought.base_commit])
        empty = empty_tree(files.tree)
        at_head = trees.get(head, empty)
        at_base = trees.get(brought.base_commit, empty)
        as_brought = trees.get(brought.brought_commit, at_base)
        on_host = bool(head) and "HEAD" not in tips
        parents = [head] if head else []
        staged, tree = files.index_tree, files.tree
        if staged and staged != at_head:
            told = await _brought_index(repository, brought)
            if not (on_host and staged in ({told} if told else {as_brought, at_base})):
                tips["index"] = await self._commit(
                    repository, staged, parents, STAGED_SUBJECT, history=history
                )
                parents = [*parents, tips["index"]]
        if tree == as_brought or (tree == empty and not head):
            return
        if "index" in tips:
            if tree == staged:
                return
        elif tree == at_head and not (on_host and head == brought.base_commit and not brought.metadata_only):
            return  # it is HEAD, which is kept or was brought; but local changes that are undone are news
        if brought.metadata_only and tree == empty and not files.has_index:
            return
        tips["worktree"] = await self._commit(repository, tree, parents, FILES_SUBJECT, history=history)

    async def _commit(
        self, repository: Repository, tree: str, parents: Sequence[str], subject: str, *, history: History
    ) -> str:
        commit, made_at = self._made.get((subject, tree, tuple(parents)), ("", 0))
        if commit not in await existing(repository, [commit]):
            words = [word for parent in parents for word in ("-p", parent)]
            # one that the repository has lost since is made again as it was
            at = dict.fromkeys(_DATES, f"@{made_at} +0000") if commit else None
            made = await repository.git("commit-tree", tree, *words, "-m", subject, env=at)
            if made.status:
                raise GitFailed("commit-tree", "failed", details=made.stderr)
            commit = object_id(made.stdout, "commit-tree")
        history.commits[commit] = tuple(parents)
        return commit


class _Ref(NamedTuple):
    name: bytes
    commit: str
    is_current: bool


async def _refs(repository: Repository) -> tuple[list[_Ref], list[str]]:
    """All refs, and what is wrong with some."""
    listed = await repository.git("for-each-ref", "--format=%(HEAD)%(objectname) %(refname)", most=LISTING)
    if listed.status:
        if (await repository.git("rev-parse", "--git-dir")).status:
            raise NoRepository
        raise GitFailed("for-each-ref", "failed", details=listed.stderr)
    found = []
    for line in listed.stdout.split(b"\n")[:-1]:
        commit, _, name = line[1:].partition(b" ")
        found.append(_Ref(name, object_id(commit, "for-each-ref"), line[:1] == b"*"))
    return found, ["Some refs are damaged and are not kept."] if "ignoring" in listed.stderr else []


async def _head(repository: Repository) -> str:
    """The commit, or ""."""
    there = await existing(repository, ["HEAD^{commit}"])
    return there["HEAD^{commit}"][0] if there else ""


async def _branch(repository: Repository, refs: Sequence[_Ref], head: str) -> str:
    """ "" when detached."""
    ref = next((ref.name for ref in refs if ref.is_current), b"")
    if not ref and not head:  # it is not born, or damaged
        ref = (await repository.git("symbolic-ref", "-q", "HEAD")).stdout.rstrip(b"\n")
    return spelled(ref[len(b"refs/heads/") :]) if ref.startswith(b"refs/heads/") else ""


async def _ref_tips(
    repository: Repository, brought: Brought, refs: Sequence[_Ref]
) -> tuple[dict[str, str], list[str]]:
    """Branches, tags, notes, stashes and other refs that are not as brought; and what is wrong with some."""
    names = ((kept_name(ref.name), ref.commit) for ref in refs)
    found = [
        (name, commit) for name, commit in names if name is not None and brought.refs.get(name) != commit
    ]
    if len(found) > MAX_TIPS:
        raise GitFailed("for-each-ref", f"lists more than {MAX_TIPS} refs that were not brought")
    if any(name == "stash" for name, _ in found):
        older = await _reflog(repository, "refs/stash")
        found += [(f"stash-{number}", commit) for number, commit in enumerate(older) if number]
        found = [pair for pair in found if brought.refs.get(pair[0]) != pair[1]]
    there = await existing(repository, [commit for _, commit in found])
    notes = []
    lost = sorted(name for name, commit in found if commit not in there)
    if lost:
        notes.append(
            f"{len(lost)} refs name objects that are missing ({lost[0]!a} for one): they are not kept."
        )
    return untangled((name, commit) for name, commit in found if commit in there), notes


async def _reflog(repository: Repository, ref: str) -> list[str]:
    """The commits of a reflog, newest first; none where it cannot be read."""
    shown = await repository.git("reflog", "show", "--format=%H", "-n", str(MAX_REFLOG), ref, "--")
    return [word for word in text_of(shown.stdout).split() if is_object_id(word)]


async def _on_host(repository: Repository, brought: Brought, refs: Sequence[_Ref]) -> set[str]:
    """The brought ids that this repository has; and what of `refs` it has from its remotes."""
    ids = brought.commits() | {ref.commit for ref in refs if ref.name.startswith(b"refs/remotes/")}
    there = await existing(repository, ids)
    return {commit for commit, (_, kind) in there.items() if kind in ("commit", "tag")}


async def _otherwise_named(repository: Repository) -> list[str]:
    """Commits that HEAD's reflog or an operation under way name."""
    states = await existing(repository, [f"{state}^{{commit}}" for state in _STATES])
    candidates = [commit for commit, _ in states.values()] + await _reflog(repository, "HEAD")
    there = await existing(repository, candidates)
    return [commit for commit in candidates if there.get(commit, ("", ""))[1] == "commit"]


async def _ahead(
    repository: Repository, head: str, brought: Brought, *, on_host: set[str], history: History
) -> int:
    base = brought.base_commit
    if not head or head == base or base not in on_host:
        return 0
    if on_host == {base} and history.whole:
        return len(history.reached([head]))
    counted = await repository.git("rev-list", "--count", head, f"^{base}", most=100)
    number = counted.stdout.strip()
    return int(number) if number.isdigit() and len(number) < 10 else 0


async def _trees(repository: Repository, commits: Sequence[str]) -> dict[str, str]:
    """The trees of those commits that are there."""
    there = await existing(repository, [f"{commit}^{{tree}}" for commit in commits if commit])
    return {name.partition("^")[0]: tree for name, (tree, _) in there.items()}


async def _brought_index(repository: Repository, brought: Brought) -> str:
    """The tree of the index as brought, "" when nobody said."""
    told = brought.refs.get("index", "")
    if not is_object_id(told):
        return ""
    return (await _trees(repository, [told])).get(told, told)


async def _pinned(repository: Repository, commit: str, paths: Sequence[bytes]) -> dict[bytes, str]:
    """What was brought of the repositories inside: the gitlinks of a commit."""
    if not commit or commit not in await existing(repository, [commit]):
        return {}
    listed = await repository.git(
        "--literal-pathspecs", "ls-tree", "-z", commit, "--", *map(os.fsdecode, paths), most=LISTING
    )
    found: dict[bytes, str] = {}
    for entry in listed.stdout.split(b"\0")[:-1]:
        words, _, path = entry.partition(b"\t")
        mode, _, rest = words.partition(b" ")
        if mode == b"160000":
            found[path] = object_id(rest.partition(b" ")[2], "ls-tree")
    return found
