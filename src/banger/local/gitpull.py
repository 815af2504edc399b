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
from banger.local.asuser import acting_as
from banger.local.git import LONG_S, Git, GitFailed
from banger.local.kepttips import OLD, Kept, is_id
from banger.local.tempgit import BOUNDS, OnBytes, TempRepository, refused, temporary

MOST_BYTES = 64 << 30
"""Of a pack: what it may cost on the user's disk."""
STAMP = "%Y%m%dT%H%M%SZ"
IN = "refs/in/"
QUIETLY = ("-c", "core.logAllRefUpdates=false")
_FETCH = (
    *QUIETLY,
    *("-c", "fetch.fsckObjects=true", "-c", "fetch.unpackLimit=1", "-c", "fetch.writeCommitGraph=false"),
    *("-c", "core.bigFileThreshold=64m", "-c", "fetch.negotiationAlgorithm=default"),
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


class Found(NamedTuple):
    """A repository of the user's."""

    git: Git
    folder: str
    objects: str
    object_format: str
    shallow: bytes


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
    found = open_repository(folder, account)
    prefix = prefix_of(kept)
    there = read_refs(found.git, prefix)
    if _same(there, kept.tips):
        return Pulled(found.folder, prefix, ())
    with temporary(account) as room:
        middle = TempRepository.create(f"{room}/repo.git", account, object_format=found.object_format)
        middle.borrow(found.objects)
        if found.shallow:
            middle.write("shallow", found.shallow)
        have = present(middle, [kept.base, *kept.cut, *(set(there.values()) & set(kept.tips.values()))])
        if kept.base and kept.base not in have:
            raise _without_base(kept, found)
        middle.receive(pack(sorted(have)), most_bytes=most_bytes, on_bytes=on_bytes)
        take_tips(middle, kept.tips, have)
        changes = _plan(middle, there, kept)
        fetch(found.git, middle.folder, kept.tips)
    _apply(found.git, prefix, there, changes)
    after = {**{n: c for n, c in there.items() if n not in changes.gone}, **kept.tips}
    moved = [
        Moved(name, there.get(name, ""), after.get(name, ""))
        for name in sorted({*there, *after})
        if there.get(name) != after.get(name)
    ]
    return Pulled(found.folder, prefix, tuple(moved), tuple(sorted(changes.former)))


def prefix_of(kept: Kept) -> str:
    return f"refs/banger/{kept.vm_name}/"


def find_repository(kept: Kept, asked: str, recorded: str, *, account: Account | None = None) -> str:
    """The folder to pull into: the one asked for, else the recorded one, else this folder's, when it has the
    commit on which the work builds. Blocking. NOT_FOUND when there is none."""
    account = this_account() if account is None else account
    if asked:
        return open_repository(os.path.abspath(asked), account).folder
    if recorded:
        try:
            return open_repository(recorded, account).folder
        except BangerError as error:
            why = error.brief
    else:
        why = "it is not known where it came from"
    try:
        here = open_repository(os.getcwd(), account)
        if kept.base and has_commit(here.git, kept.base):
            return here.folder
    except (BangerError, OSError):
        pass
    raise BangerError(
        ErrorCode.NOT_FOUND,
        f"no repository to pull the work of {kept.vm_name} into: {why}",
        hint=f"banger workspace pull {kept.vm_name} PATH, or --into DIR for a new clone",
    )


def resolve_commit(folder: str, text: str, *, account: Account | None = None) -> str:
    """The full id of what names a commit in the user's repository; "" where there is none. Blocking."""
    try:
        git = Git(folder, this_account() if account is None else account)
        done = git.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}", ok=(0, 1, 128)
        )
    except (BangerError, ValueError):
        return ""
    found = done.stdout.decode("ascii", "replace").strip()
    return found if done.status == 0 and is_id(found) else ""


class Standing(NamedTuple):
    """Of kept work in the user's repository: what of it is there, and whether that moved on."""

    folder: str
    pulled: frozenset[str]
    """Names of tips whose ref below refs/banger/<vm>/ is the same."""
    present: frozenset[str]
    """Names of tips whose commit is there, by whatever way."""
    head: str
    """The commit that is checked out now."""


def standing(kept: Kept, folder: str, *, account: Account | None = None) -> Standing:
    """Blocking. Raises NOT_FOUND where there is no repository; changes nothing."""
    found = open_repository(folder, this_account() if account is None else account)
    there = read_refs(found.git, prefix_of(kept))
    here = present(found.git, kept.tips.values())
    return Standing(
        found.folder,
        frozenset(name for name, commit in kept.tips.items() if there.get(name) == commit),
        frozenset(name for name, commit in kept.tips.items() if commit in here),
        found.git.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}"),
    )


def local_branches(folder: str, *, account: Account | None = None) -> tuple[str, set[str]]:
    """(the one that is checked out, "" for none; all of them). Blocking."""
    git = Git(folder, this_account() if account is None else account)
    return git.text("symbolic-ref", "--quiet", "--short", "HEAD"), set(read_refs(git, "refs/heads/"))


def open_repository(folder: str, account: Account) -> Found:
    """NOT_FOUND with what git says: there is no repository, or it is somebody else's."""
    try:
        git = Git(folder, account)
        bare = git.text("rev-parse", "--is-bare-repository") == "true"
        top = git.text("rev-parse", *(["--absolute-git-dir"] if bare else ["--show-toplevel"]))
        objects = git.text("rev-parse", "--git-path", "objects")
        cut = git.text("rev-parse", "--git-path", "shallow")
        object_format = git.text("rev-parse", "--show-object-format")
    except GitFailed as error:
        raise BangerError(
            ErrorCode.NOT_FOUND, f"{folder!a}: {error.message[:300]}", details=error.details
        ) from error
    try:
        with acting_as(account), open(os.path.join(folder, cut), "rb") as file:
            shallow = file.read()
    except FileNotFoundError:
        shallow = b""
    return Found(Git(top, account), top, os.path.join(folder, objects), object_format, shallow)


def read_refs(git: Git, prefix: str) -> dict[str, str]:
    """Names below the prefix, and what they are."""
    refs: dict[str, str] = {}
    listed = git.run("for-each-ref", "--format=%(objectname) %(refname)", prefix)
    for line in os.fsdecode(listed.stdout).split("\n")[:-1]:
        commit, _, name = line.partition(" ")
        refs[name.removeprefix(prefix)] = commit
    return refs


def has_commit(git: Git, commit: str) -> bool:
    return git.run("cat-file", "-e", f"{commit}^{{commit}}", ok=(0, 1, 128)).status == 0


def present(git: Git | TempRepository, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are objects there."""
    asked = set(ids) - {""}
    done = git.run("cat-file", "--batch-check=%(objectname)", input=_lines(sorted(asked)))
    return asked & set(done.stdout.decode().split("\n"))


def take_tips(middle: TempRepository, tips: Mapping[str, str], have: set[str]) -> None:
    """Refs of its own to the tips; all between them and what the user has must be there (WorkRefused)."""
    made = "".join(f"create {IN}{name}\0{commit}\0" for name, commit in tips.items())
    asked = [*sorted(set(tips.values())), *(f"^{commit}" for commit in sorted(have))]
    try:
        middle.run("update-ref", "--stdin", "-z", input=made.encode())
        middle.run("rev-list", "--objects", "--quiet", "--stdin", input=_lines(asked), env=BOUNDS)
    except GitFailed as error:
        raise refused(error) from error


def fetch(git: Git, middle: str, names: Iterable[str], *options: str) -> None:
    """Objects only: which ref comes to point where is said in transactions afterwards."""
    wanted = [f"{IN}{name}" for name in names]
    if not wanted:
        return
    env = {**BOUNDS, "GIT_ALLOW_PROTOCOL": "file"}
    try:
        git.run(*_FETCH, *options, middle, input=_lines(wanted), timeout_s=LONG_S, env=env)
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


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


class _Changes(NamedTuple):
    """former: new refs to tips that would be lost. gone: what is no more in the guest. tips: what came."""

    former: dict[str, str]
    gone: dict[str, str]
    tips: dict[str, str]


def _plan(middle: TempRepository, there: Mapping[str, str], kept: Kept) -> _Changes:
    gone = {n: c for n, c in there.items() if n not in kept.tips and not n.startswith(OLD)}
    replaced = {n: there[n] for n, c in kept.tips.items() if there.get(n, c) != c}
    endangered = {**gone, **replaced}
    held = {*kept.tips.values(), *(c for n, c in there.items() if n.startswith(OLD) and n not in replaced)}
    lost = _unreachable(middle, set(endangered.values()) - held, kept)
    taken = {name.split("/")[1] for name in {*there, *kept.tips} if name.startswith(OLD)}
    moment = datetime.now(UTC)
    while moment.strftime(STAMP) in taken:
        moment += timedelta(seconds=1)
    former = {
        f"{OLD}{moment.strftime(STAMP)}/{_without_stamp(name)}": commit
        for name, commit in endangered.items()
        if commit in lost
    }
    return _Changes(former, gone, kept.tips)


def _without_stamp(name: str) -> str:
    return name.split("/", 2)[2] if name.startswith(OLD) and name.count("/") > 1 else name


def _unreachable(middle: TempRepository, commits: set[str], kept: Kept) -> set[str]:
    """Those that no tip that came holds. What is no commit (a tag) counts as such."""
    if not commits:
        return set()
    kinds = middle.run(
        "cat-file", "--batch-check=%(objectname) %(objecttype)", input=_lines(sorted(commits))
    ).stdout.decode()
    plain = {line.partition(" ")[0] for line in kinds.split("\n") if line.endswith(" commit")}
    tips = sorted({*kept.tips.values(), kept.base} - {""})
    walked = middle.run("rev-list", "--stdin", input=_lines([*sorted(plain), *(f"^{tip}" for tip in tips)]))
    return (commits - plain) | (plain & set(walked.stdout.decode().split("\n")))


def _apply(git: Git, prefix: str, there: Mapping[str, str], changes: _Changes) -> None:
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
            git.run(*QUIETLY, "update-ref", "--stdin", "-z", input="".join(lines).encode())
