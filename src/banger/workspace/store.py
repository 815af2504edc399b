"""WorkStore: the bare repository of banger's in which the work of one VM is kept.

Used by WorkspaceService, one caller at a time. FOLDER/repo.git has `refs/work/<name>` as the work is now,
`refs/work/old/<stamp>/<name>` for tips that moved and are in nothing newer, and `refs/base/brought`, which
patches begin at. It is cut (git's shallow file) where the user's own repository goes on. Objects come before
refs and old tips are named before new ones: a crash leaves the work as it was or as it is, and something to
sweep. Of `old/` only banger's own snapshots are ever removed (thin), never what was committed in the guest;
`refs/base/retired/` has those snapshots that a preparation replaced: they stay. Objects that no ref has any
more go with the next repack.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from banger.model.work import SUBJECT_LENGTH, KeptRef
from banger.system.threads import in_thread
from banger.workspace.errors import GitFailed, WorkNotKept
from banger.workspace.hostrepository import HostRepository, bare_repository
from banger.workspace.names import OLD, in_the_way, untangled
from banger.workspace.packs import INCOMING, Incoming
from banger.workspace.repository import LISTING, existing, is_object_id, object_id, outermost, unreached
from banger.workspace.snapshot import STAGED_SUBJECT, OwnCommit, Part
from banger.workspace.thin import STAMP, snapshot_name, split_old, thinned

WORK = "refs/work/"
BASE = "refs/base/brought"
RETIRED = "refs/base/retired/"
MAX_PACKS = 40
_CHUNK = 1 << 18
_MADE = re.compile(r"(?:.*/)?(?:index|worktree)\Z")
_REFLOG = re.compile(r"(?:sub/.*/)?reflog/[0-9a-f]{12}\Z")


class WorkStore:
    """folder: the VM's, made when there is something to keep."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._git_dir = f"{folder}/repo.git"
        self._git = HostRepository(self._git_dir, self._git_dir)

    @property
    def exists(self) -> bool:
        return os.path.exists(f"{self._git_dir}/HEAD")

    async def refs(self) -> dict[str, str]:
        """KeptRef names -> ids, old ones too."""
        if not self.exists:
            return {}
        listed = await self._run("for-each-ref", "--format=%(objectname) %(refname)", WORK)
        pairs = (line.split(" ", 1) for line in listed.decode("utf-8", "surrogateescape").splitlines())
        return {name[len(WORK) :]: commit for commit, name in pairs}

    async def kept(self) -> tuple[KeptRef, ...]:
        """The refs with their subjects: current ones first."""
        if not self.exists:
            return ()
        form = "--format=%(objectname)%00%(refname)%00%(contents:subject)"
        found = []
        for line in (await self._run("for-each-ref", form, WORK)).split(b"\n")[:-1]:
            commit, name, subject = line.split(b"\0", 2)
            found.append(
                KeptRef(
                    name=name.decode("utf-8", "replace")[len(WORK) :],
                    commit=commit.decode(),
                    subject=subject.decode("utf-8", "replace")[:SUBJECT_LENGTH],
                )
            )
        return tuple(sorted(found, key=lambda ref: (ref.name.startswith(OLD), ref.name)))

    async def made(self) -> dict[OwnCommit, tuple[str, int]]:
        """banger's own commits here: the same state is the same commit."""
        mine = [commit for name, commit in (await self.refs()).items() if _MADE.match(name)]
        if not mine:
            return {}
        shown = await self._run(
            *("rev-list", "--no-walk=unsorted", "--no-commit-header", "--format=%H %ct %T %P%x00%s%x00"),
            "--stdin",
            stdin=_lines(mine),
        )
        found: dict[OwnCommit, tuple[str, int]] = {}
        fields = shown.decode("utf-8", "replace").split("\0")
        for words, subject in zip(fields[::2], fields[1::2], strict=False):
            commit, moment, tree, *parents = words.split()
            found[(subject, tree, tuple(parents))] = (commit, int(moment))
        return found

    def cut(self) -> tuple[str, ...]:
        """Commits here whose parents are not; of those only refs/work's and what they reach matter."""
        try:
            with open(f"{self._git_dir}/shallow") as file:
                return tuple(file.read().split())
        except FileNotFoundError:
            return ()

    async def receive(self, parts: Sequence[Part]) -> None:
        """Keep the tips of a snapshot. Raises WorkNotKept; then the store is as it was."""
        wanted = untangled(pair for part in parts for pair in part.tips)
        if not self.exists:
            if not wanted:
                return
            await self._make(next(iter(wanted.values())))
        await in_thread(partial(sweep, self.folder))
        refs = await self.refs()
        known = set(refs.values())
        if any(len(commit) != len(other) for commit in wanted.values() for other in list(known)[:1]):
            raise WorkNotKept("the repository's ids are of another kind than those of the work kept so far")
        if not set(wanted.values()) <= known:
            async with Incoming(self.folder, self._git_dir, shallow=set(self.cut())) as incoming:
                for part in parts:
                    new = [commit for _, commit in part.tips if commit not in known]
                    if new:
                        await incoming.take(part, new, known=known)
                brought = [part.brought_commit for part in parts if part.brought_commit]
                await incoming.check(
                    {**wanted, **{commit: commit for commit in await existing(incoming, brought)}}
                )
                await incoming.move_in()
        await self._base(parts)
        await self.move(wanted)
        await self._repack()

    async def move(self, wanted: Mapping[str, str], *, retiring: bool = False) -> None:
        """Let the current refs be these (all objects are here); what none of them has stays as an old one.

        Old snapshots are thinned. retiring: the snapshots of now are never thinned.
        """
        if not self.exists:
            return
        refs = await self.refs()
        old = {name: commit for name, commit in refs.items() if name.startswith(OLD)}
        current = {name: commit for name, commit in refs.items() if name not in old}
        named = {name: commit for name, commit in wanted.items() if not _REFLOG.match(name)}
        gone = {name: commit for name, commit in current.items() if wanted.get(name) != commit}
        going = await self._going(old, gone)
        staying = {name: commit for name, commit in old.items() if name not in going}
        files = {name for name in staying if snapshot_name(_without_stamp(name))}
        lost = await self._lost(
            gone,
            [*named.values(), *staying.values()],
            others=[*named.values(), *(commit for name, commit in staying.items() if name not in files)],
        )
        last = _last_snapshots(current) if retiring else {}
        lost |= last
        blocked = in_the_way((name for name in current if name not in wanted), wanted)
        lost |= {
            name: current[name] for name in blocked
        }  # gone for a moment, before what follows them is there
        stamp = _free_stamp(old)
        archive = {f"{OLD}{stamp}/{name}": commit for name, commit in lost.items()}
        # what only a reflog named may be an old tip now, or in one
        reflog = {name: commit for name, commit in wanted.items() if name not in named}
        elsewhere = [*named.values(), *staying.values(), *archive.values()]
        only_there = await unreached(self._git, reflog.values(), without=elsewhere)
        target = {**named, **{name: commit for name, commit in reflog.items() if commit in only_there}}
        rescued = await self._rescued(going, [*target.values(), *staying.values(), *archive.values()])
        marks = [f"create {RETIRED}{stamp}/{name} {commit}" for name, commit in last.items()]
        await self._update([*(f"create {WORK}{name} {commit}" for name, commit in archive.items()), *marks])
        await self._update([f"delete {WORK}{name} {current[name]}" for name in blocked])
        changes = [
            f"update {WORK}{name} {commit} {current.get(name, '0' * len(commit))}"
            for name, commit in target.items()
            if current.get(name) != commit
        ]
        changes += [f"create {WORK}{name} {commit}" for name, commit in rescued.items()]
        changes += [
            f"delete {WORK}{name} {commit}"
            for name, commit in current.items()
            if name not in target and name not in blocked
        ]
        changes += [f"delete {WORK}{name} {commit}" for name, commit in going.items()]
        await self._update(changes)

    async def retire(self) -> None:
        """A new preparation: all current refs become old ones."""
        await self.move({}, retiring=True)

    async def _going(self, old: Mapping[str, str], gone: Mapping[str, str]) -> dict[str, str]:
        """Old snapshots that need not stay: too many of a time, or one that becomes old again now.

        The latter comes back with the time at which it was last seen.
        """
        names = thinned(old, datetime.now(UTC))
        again = {name: commit for name, commit in gone.items() if snapshot_name(name)}
        for name, commit in old.items():
            found = split_old(name)
            if found is not None and again.get(found[1]) == commit:
                names.add(name)
        if not names:
            return {}
        retired = set((await self._run("for-each-ref", "--format=%(objectname)", RETIRED)).decode().split())
        return {name: old[name] for name in sorted(names) if old[name] not in retired}

    async def _rescued(self, going: Mapping[str, str], kept: Sequence[str]) -> dict[str, str]:
        """Refs for commits of the guest's that only those snapshots had: amended and rebased away since."""
        found: dict[str, str] = {}
        places: dict[str, dict[str, str]] = {}
        for name, commit in going.items():
            stamp, inside = name.removeprefix(OLD).partition("/")[0], _without_stamp(name)
            places.setdefault(inside[: inside.rfind("/") + 1], {})[commit] = stamp
        for prefix, tips in places.items():
            new = await unreached(self._git, tips, without=[*kept, *found.values()])
            own = tips.keys() | await self._staged(new)
            theirs = {commit: parents for commit, parents in new.items() if commit not in own}
            for commit in outermost(theirs, theirs):
                found[f"{OLD}{max(tips.values())}/{prefix}reflog/{commit[:12]}"] = commit
        return found

    async def _staged(self, commits: Iterable[str]) -> set[str]:
        """Those that are banger's, of what was staged."""
        given = _lines(commits)
        if not given:
            return set()
        form = "--format=%H %an <%ae> %cn <%ce> %s"
        shown = await self._run("rev-list", "--no-walk", "--no-commit-header", form, "--stdin", stdin=given)
        mine = f" banger <banger@localhost> banger <banger@localhost> {STAGED_SUBJECT}"
        lines = shown.decode("utf-8", "replace").split("\n")
        ids = {line.removesuffix(mine) for line in lines if line.endswith(mine)}
        return {identifier for identifier in ids if is_object_id(identifier)}

    async def _lost(
        self, gone: Mapping[str, str], kept: Sequence[str], *, others: Sequence[str]
    ) -> dict[str, str]:
        """Those of `gone` that nothing in `kept` has, without those that others of them have.

        others: those of kept that are not thinned away some day.
        """
        there = await existing(self._git, gone.values())
        commits = {
            name: commit for name, commit in gone.items() if there.get(commit, ("", ""))[1] == "commit"
        }
        new = await unreached(self._git, commits.values(), without=kept)
        mine = {commit for name, commit in commits.items() if commit in new and _MADE.match(name)}
        if mine:
            # banger's own commit is nothing but its tree: where that is in another one, it is not lost
            trees = await self._trees(others)
            own = await self._own_trees(mine)
            new = {commit: parents for commit, parents in new.items() if own.get(commit) not in trees}
        outer = set(outermost(commits.values(), new))
        outer |= {commit for name, commit in gone.items() if name not in commits and commit not in kept}
        found: dict[str, str] = {}
        for name, commit in sorted(gone.items()):
            if commit in outer and commit not in found.values():
                found[name] = commit
        return found

    async def _trees(self, tips: Iterable[str]) -> set[str]:
        """The trees of all commits that the tips reach."""
        given = _lines(tips)
        if not given:
            return set()
        shown = await self._run("rev-list", "--no-commit-header", "--format=%T", "--stdin", stdin=given)
        return set(shown.decode().split())

    async def _own_trees(self, commits: Iterable[str]) -> dict[str, str]:
        there = await existing(self._git, [f"{commit}^{{tree}}" for commit in commits])
        return {name.partition("^")[0]: tree for name, (tree, _) in there.items()}

    async def _base(self, parts: Sequence[Part]) -> None:
        """Keep what was brought, where it came along."""
        for part in parts:
            if part.brought_commit and part.brought_commit in await existing(
                self._git, [part.brought_commit]
            ):
                await self._update([f"update {BASE} {part.brought_commit}"])

    async def _update(self, lines: list[str]) -> None:
        """One transaction; git writes what is made or moved before it removes anything."""
        if lines:
            await self._run("update-ref", "--stdin", stdin="".join(f"{line}\n" for line in lines).encode())

    async def _make(self, some_id: str) -> None:
        """The empty repository: there whole or not at all."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        making = f"{self.folder}/{INCOMING}repo.git"
        await in_thread(partial(shutil.rmtree, making, ignore_errors=True))
        await bare_repository(making, "sha256" if len(some_id) == 64 else "sha1")
        await HostRepository(making, making).git("config", "core.fsync", "all")
        os.rename(making, self._git_dir)

    async def _repack(self) -> None:
        """Many keeps make many packs; one is enough. Nothing is lost when it fails."""
        packs = [name for name in os.listdir(f"{self._git_dir}/objects/pack") if name.endswith(".pack")]
        if len(packs) > MAX_PACKS:
            await self._git.git("repack", "-a", "-d", "-q")

    async def has(self, commit: str) -> str:
        """A commit's full id, "" when the store has it not. commit: an id, or the beginning of one."""
        if not self.exists or not re.fullmatch(r"[0-9a-f]{4,64}", commit):
            return ""
        found = await self._git.git("rev-parse", "-q", "--verify", f"{commit}^{{commit}}")
        return object_id(found.stdout, "rev-parse") if not found.status else ""

    async def tree_of(self, commit: str) -> str:
        """A commit's tree, "" when the store has it not."""
        return (await self._own_trees([commit])).get(commit, "") if self.exists and commit else ""

    async def has_tree(self, tree: str) -> bool:
        return self.exists and is_object_id(tree) and tree in await existing(self._git, [tree])

    async def pack(self, have: Iterable[str]) -> AsyncIterator[bytes]:
        """A pack of all refs without what `have` reach (those of them that the store has)."""
        if not self.exists:
            raise WorkNotKept("nothing of it is kept yet")
        there = await existing(self._git, [commit for commit in have if is_object_id(commit)])
        lines = [*dict.fromkeys((await self.refs()).values()), *(f"^{commit}" for commit in there)]
        argv = ("pack-objects", "--revs", "--delta-base-offset", "--stdout", "-q")
        async for chunk in self._stream(*argv, stdin=_lines(lines)):
            yield chunk

    async def patch(self, base: str, tree: str) -> AsyncIterator[bytes]:
        """Binary patch between two trees or commits that the store has."""
        argv = (
            "-c",
            "core.bigFileThreshold=512m",
            "diff-tree",
            "-r",
            "-p",
            "--binary",
            "--full-index",
            "--no-ext-diff",
            "--no-textconv",
        )
        words = ("--no-color", "--no-renames", "--ignore-submodules=none", base, tree)
        async for chunk in self._stream(*argv, *words):
            yield chunk

    async def _stream(self, *argv: str, stdin: bytes | None = None) -> AsyncIterator[bytes]:
        """What a command says, through a file without a name: readers may be slow, git may not wait."""
        descriptor = os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb") as file:
            with os.fdopen(os.dup(descriptor), "wb") as sink:
                ended = await self._git.git_to(sink, *argv, stdin=stdin, most=1 << 62)
            if ended.status:
                raise GitFailed(argv[0], "failed in the store", details=ended.stderr)
            await in_thread(partial(file.seek, 0))
            while chunk := await in_thread(partial(file.read, _CHUNK)):
                yield chunk

    async def _run(self, *argv: str, stdin: bytes | None = None) -> bytes:
        ended = await self._git.git(*argv, stdin=stdin, most=LISTING)
        if ended.status:
            raise GitFailed(argv[0], "failed in the store", details=ended.stderr)
        return ended.stdout


def sweep(folder: str) -> None:
    """Remove what a crash left: objects on their way in, locks of a git that was ended. It is idle."""
    for name in os.listdir(folder):
        if name.startswith(INCOMING):
            shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
    git_dir = f"{folder}/repo.git"
    for where, _, files in os.walk(f"{git_dir}/refs"):
        _unlink_locks(where, files)
    if os.path.isdir(git_dir):
        _unlink_locks(git_dir, os.listdir(git_dir))


def _unlink_locks(folder: str, names: Iterable[str]) -> None:
    for name in names:
        if name.endswith(".lock"):
            os.unlink(f"{folder}/{name}")


def _without_stamp(name: str) -> str:
    return name.removeprefix(OLD).partition("/")[2]


def _last_snapshots(current: Mapping[str, str]) -> dict[str, str]:
    """The files of each repository, or what was staged where the files are no other."""
    found = {name: commit for name, commit in current.items() if snapshot_name(name)}
    return {
        name: commit
        for name, commit in found.items()
        if not (name.endswith("index") and f"{name[: -len('index')]}worktree" in found)
    }


def _free_stamp(old: Iterable[str]) -> str:
    used = {name.split("/")[1] for name in old}
    moment = datetime.now(UTC)
    while (stamp := moment.strftime(STAMP)) in used:
        moment += timedelta(seconds=1)
    return stamp


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in dict.fromkeys(words)).encode()
