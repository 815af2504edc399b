"""Work that banger keeps of a guest, brought into a repository of the user's as `refs/banger/<vm>/…`.

The pack goes into a bare repository of banger's own first, which borrows the user's objects: there it is
indexed with fsck, found whole, and only then fetched, as the user. Work tree, index, branches, tags and
reflogs of theirs are never touched, no hook of theirs is run. Objects come before refs, and a tip that would
be lost is a ref below `old/` before another one moves: after a crash at any point the next pull finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, this_account
from banger.local.git import LONG_S, Git, GitFailed
from banger.local.gitplaces import (
    Found,
    Target,
    lines_of,
    open_repository,
    prefix_of,
    present,
    read_refs,
    targets_of,
)
from banger.local.kepttips import OLD, Kept
from banger.local.tempgit import BOUNDS, OnBytes, TempRepository, refused, temporary
from banger.workspace.packs import TOLERATED

MOST_BYTES = 64 << 30
"""Of a pack: what it may cost on the user's disk."""
STAMP = "%Y%m%dT%H%M%SZ"
IN = "refs/in/"
QUIETLY = ("-c", "core.logAllRefUpdates=false")
_FETCH = (
    *QUIETLY,
    *("-c", "fetch.fsckObjects=true", "-c", "fetch.unpackLimit=1", "-c", "fetch.writeCommitGraph=false"),
    *("-c", "core.bigFileThreshold=64m", "-c", "fetch.negotiationAlgorithm=default"),
    *(word for name in TOLERATED for word in ("-c", f"fetch.fsck.{name}=ignore")),
    *("fetch", "--quiet", "--stdin", "--no-write-fetch-head", "--no-tags", "--no-auto-maintenance"),
    *("--no-recurse-submodules", "--no-prune", "--refmap="),
    # the repository it serves is ours, and the user's configuration is not for it
    "--upload-pack=env GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null git upload-pack",
)

Pack = Callable[[Sequence[str]], Iterator[bytes]]
"""The daemon's pack for one that has these commits."""


class Moved(NamedTuple):
    """name: below refs/banger/<vm>/. before: "" when it is new. after: "" when it went."""

    name: str
    before: str
    after: str


class Pulled(NamedTuple):
    """folder: the work tree, or the folder of a bare repository. moved: what this pull changed, by name."""

    folder: str
    prefix: str
    moved: tuple[Moved, ...]
    former: tuple[str, ...] = ()
    """Names below the prefix for tips of earlier pulls that nothing newer holds."""
    inner: tuple[Pulled, ...] = ()
    """The same of the user's submodules, for what was done in those of the guest."""
    left_out: tuple[str, ...] = ()
    """Names, as the work has them, that build on commits which no repository here has."""


def pull(
    kept: Kept,
    pack: Pack,
    folder: str,
    *,
    account: Account | None = None,
    on_bytes: OnBytes = lambda _count: None,
    most_bytes: int = MOST_BYTES,
) -> Pulled:
    """Into the repository at `folder`. Blocking. Raises BangerError; then its refs are as they were."""
    account = this_account() if account is None else account
    targets = targets_of(open_repository(folder, account), kept.tips, account)
    theirs = [read_refs(target.found.git, prefix_of(kept)) for target in targets]
    if all(_same(refs, target.tips) for refs, target in zip(theirs, targets, strict=True)):
        return _joined([Pulled(target.found.folder, prefix_of(kept), ()) for target in targets], ())
    with temporary(account) as room:
        middle = TempRepository.create(
            f"{room}/repo.git", account, object_format=targets[0].found.object_format
        )
        middle.borrow(*(target.found.objects for target in targets))
        known = {commit for refs in theirs for commit in refs.values()} & set(kept.tips.values())
        have = present(middle, [kept.base, *kept.cut, *known])
        if kept.base and kept.base not in have:
            raise _without_base(kept, targets[0].found)
        cut = [commit for commit in kept.cut if commit not in have]
        shallow = b"".join(target.found.shallow for target in targets) + lines_of(cut)
        if shallow:
            middle.write("shallow", shallow)
        middle.receive(pack(sorted(have)), most_bytes=most_bytes, on_bytes=on_bytes)
        take_tips(middle, kept.tips, have)
        left_out = _built_on(middle, present(middle, cut))
        changes = [
            _plan(middle, refs, target.without(left_out), kept)
            for refs, target in zip(theirs, targets, strict=True)
        ]
        for target in targets:
            fetch(target.found.git, middle.folder, target.sources(left_out))
    done = [
        _apply(target.found, prefix_of(kept), refs, change)
        for target, refs, change in zip(targets, theirs, changes, strict=True)
    ]
    return _joined(done, sorted(left_out))


def _joined(done: Sequence[Pulled], left_out: Sequence[str]) -> Pulled:
    return done[0]._replace(inner=tuple(done[1:]), left_out=tuple(left_out))


def _built_on(middle: TempRepository, cut: Iterable[str]) -> set[str]:
    """Names of tips whose history ends at one of these commits, for nobody here has what is before it."""
    names: set[str] = set()
    for commit in cut:
        listed = middle.run("for-each-ref", "--format=%(refname)", "--contains", commit, IN)
        names.update(line.removeprefix(IN) for line in os.fsdecode(listed.stdout).split("\n")[:-1])
    return names


def take_tips(middle: TempRepository, tips: Mapping[str, str], have: set[str]) -> None:
    """Refs of its own to the tips; all between them and what the user has must be there (WorkRefused)."""
    made = "".join(f"create {IN}{name}\0{commit}\0" for name, commit in tips.items())
    asked = [*sorted(set(tips.values())), *(f"^{commit}" for commit in sorted(have))]
    try:
        middle.run("update-ref", "--stdin", "-z", input=made.encode())
        middle.run("rev-list", "--objects", "--quiet", "--stdin", input=lines_of(asked), env=BOUNDS)
    except GitFailed as error:
        raise refused(error) from error


def fetch(git: Git, middle: str, names: Iterable[str], *options: str) -> None:
    """Objects only: which ref comes to point where is said in transactions afterwards."""
    wanted = [f"{IN}{name}" for name in names]
    if not wanted:
        return
    env = {**BOUNDS, "GIT_ALLOW_PROTOCOL": "file"}
    try:
        git.run(*_FETCH, *options, middle, input=lines_of(wanted), timeout_s=LONG_S, env=env)
    except GitFailed as error:
        raise refused(error) from error


def _same(there: Mapping[str, str], tips: Mapping[str, str]) -> bool:
    """Whether a pull would change nothing: old ones of before stay as they are."""
    return all(there.get(name) == commit for name, commit in tips.items()) and all(
        name in tips or name.startswith(OLD) for name in there
    )


def _without_base(kept: Kept, found: Found) -> BangerError:
    how = "is a shallow clone and " if found.shallow else ""
    return BangerError(
        ErrorCode.NOT_FOUND,
        f"{found.folder!a} {how}does not have the commit {kept.base[:12]}, on which the work of "
        f"{kept.vm_name} builds",
        hint=f"banger workspace pull {kept.vm_name} --into DIR makes a new clone of the work",
    )


class _Changes(NamedTuple):
    """former: new refs to tips that would be lost. gone: what is no more in the guest. tips: what came."""

    former: dict[str, str]
    gone: dict[str, str]
    tips: dict[str, str]


def _plan(middle: TempRepository, there: Mapping[str, str], target: Target, kept: Kept) -> _Changes:
    tips = target.tips
    gone = {
        name: commit
        for name, commit in there.items()
        if name not in tips and name not in target.kept_aside and not name.startswith(OLD)
    }
    replaced = {name: there[name] for name, commit in tips.items() if there.get(name, commit) != commit}
    endangered = {**gone, **replaced}
    held = {*tips.values(), *(c for n, c in there.items() if n.startswith(OLD) and n not in replaced)}
    lost = _unreachable(middle, set(endangered.values()) - held, tips, kept.base)
    taken = {name.split("/")[1] for name in {*there, *tips} if name.startswith(OLD)}
    moment = datetime.now(UTC)
    while moment.strftime(STAMP) in taken:
        moment += timedelta(seconds=1)
    former = {
        f"{OLD}{moment.strftime(STAMP)}/{_without_stamp(name)}": commit
        for name, commit in endangered.items()
        if commit in lost
    }
    return _Changes(former, gone, tips)


def _without_stamp(name: str) -> str:
    return name.split("/", 2)[2] if name.startswith(OLD) and name.count("/") > 1 else name


def _unreachable(middle: TempRepository, commits: set[str], tips: Mapping[str, str], base: str) -> set[str]:
    """Those that no tip that came holds. What is no commit (a tag) counts as such."""
    if not commits:
        return set()
    kinds = middle.run(
        "cat-file", "--batch-check=%(objectname) %(objecttype)", input=lines_of(sorted(commits))
    ).stdout.decode()
    plain = {line.partition(" ")[0] for line in kinds.split("\n") if line.endswith(" commit")}
    held = sorted({*tips.values(), base} - {""})
    walked = middle.run("rev-list", "--stdin", input=lines_of([*sorted(plain), *(f"^{tip}" for tip in held)]))
    return (commits - plain) | (plain & set(walked.stdout.decode().split("\n")))


def _apply(found: Found, prefix: str, there: Mapping[str, str], changes: _Changes) -> Pulled:
    """Two transactions, as git has none in which `a` goes and `a/b` comes: what may be lost is safe first."""
    first = [f"create {prefix}{name}\0{commit}\0" for name, commit in changes.former.items()]
    first += [f"delete {prefix}{name}\0{commit}\0" for name, commit in changes.gone.items()]
    second = [
        f"update {prefix}{name}\0{commit}\0{there.get(name, '0' * len(commit))}\0"
        for name, commit in changes.tips.items()
        if there.get(name) != commit
    ]
    for lines in (first, second):
        if lines:
            found.git.run(*QUIETLY, "update-ref", "--stdin", "-z", input="".join(lines).encode())
    after = {**{n: c for n, c in there.items() if n not in changes.gone}, **changes.tips}
    moved = [
        Moved(name, there.get(name, ""), after.get(name, ""))
        for name in sorted({*there, *after})
        if there.get(name) != after.get(name)
    ]
    return Pulled(found.folder, prefix, tuple(moved), tuple(sorted(changes.former)))
