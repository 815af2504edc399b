"""Examines the repository that is to go into a guest, and refuses what cannot, before any VM is made.

For the CLI. All that is refused for what the repository is or for how options go together is refused here;
what is left for later is what changes under way. Submodules are looked into where they come along. Reads
only.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, this_account
from banger.local.asuser import acting_as
from banger.local.git import GitFailed
from banger.local.gitfacts import GITLINK, Config, Entry, Repository, open_repository, read_entries

SHALLOW, FULL, METADATA = "shallow_overlay", "full_copy", "metadata_only"
MODES = (SHALLOW, FULL, METADATA)
MAX_NESTING = 16
"""Submodules in submodules."""


@dataclass(frozen=True, slots=True)
class Submodule:
    """path: below its repository's root. source: None where it is not initialised here."""

    path: bytes
    name: str
    url: str
    source: Source | None


@dataclass(frozen=True, slots=True)
class Source:
    """A repository and how it is to travel.

    current_branch: the user's, branch_name: the guest's; "" is detached.
    local_files: the work tree's files as they are now; otherwise a clean checkout of base_commit.
    """

    path: str
    root: str
    name: str
    mode: str
    readonly: bool
    include_untracked: bool
    head_commit: str
    current_branch: str
    base_commit: str
    branch_name: str
    local_files: bool
    account: Account = field(repr=False)
    repository: Repository = field(repr=False)
    entries: tuple[Entry, ...] = field(repr=False)
    submodules: tuple[Submodule, ...] = field(default=(), repr=False)


def examine(
    path: str,
    *,
    mode: str = SHALLOW,
    branch: str = "",
    from_ref: str = "",
    include_untracked: bool = False,
    readonly: bool = False,
    account: Account | None = None,
) -> Source:
    """The repository at or above `path`, whole. INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED."""
    account = this_account() if account is None else account
    _check_words(mode, branch, from_ref, include_untracked=include_untracked, readonly=readonly)
    path = os.path.abspath(path or ".")
    _check_folder(path, account)
    repository = open_repository(path, account)
    _check_repository(repository)
    base = _resolve(repository, from_ref) if from_ref else repository.head_commit
    if branch:
        _check_branch(repository, branch, base, mode)
    elif not _is_text(repository.current_branch):
        raise _refused("the branch's name is not UTF-8", "give the guest's branch a name: --branch")
    local_files = base == repository.head_commit
    if not local_files and include_untracked:
        raise _refused(
            "--include-untracked takes the work tree as it is, --from another commit a clean checkout",
            "leave one of them out",
        )
    entries = read_entries(repository.git.run)
    gitlinks = _check_submodules(repository, entries, mode, other="" if local_files else base)
    source = Source(
        path=path,
        root=repository.root,
        name=os.path.basename(repository.root) or "repo",
        mode=mode,
        readonly=readonly,
        include_untracked=include_untracked,
        head_commit=repository.head_commit,
        current_branch=repository.current_branch if _is_text(repository.current_branch) else "",
        base_commit=base,
        branch_name=branch or repository.current_branch,
        local_files=local_files,
        account=account,
        repository=repository,
        entries=entries,
    )
    if gitlinks:
        source = replace(source, submodules=look_into(source, gitlinks))
    return source


def _check_words(mode: str, branch: str, from_ref: str, *, include_untracked: bool, readonly: bool) -> None:
    if mode not in MODES:
        raise _refused(f"there is no mode {mode!a}", f"one of {', '.join(MODES)}")
    if from_ref and not branch:
        raise _refused("--from says where a branch begins", "name it: --branch NAME --from REF")
    if mode == METADATA and (include_untracked or readonly):
        option = "--include-untracked" if include_untracked else "--readonly"
        raise _refused(f"{METADATA} brings no files, so {option} has nothing to apply to", "leave it out")


def _check_folder(path: str, account: Account) -> None:
    try:
        with acting_as(account):
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        code = ErrorCode.NOT_FOUND if missing else ErrorCode.PERMISSION_DENIED
        raise BangerError(
            code, f"{path}: {error.strerror}", hint="PATH is a folder in a git repository on this host"
        ) from error
    if not is_folder:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{path} is no folder",
            hint=f"name the repository's folder: {os.path.dirname(path)}",
        )


def _check_repository(repository: Repository) -> None:
    if not _is_text(repository.root):
        raise _refused("the repository's path is not UTF-8", "move it to a folder with a name that is")
    if repository.object_format != "sha1":
        raise _refused(
            f"the repository's object ids are {repository.object_format}, which banger cannot bring yet",
            "`banger vm cp` copies it as plain files",
        )
    if not repository.head_commit:
        on = f"branch {repository.current_branch}" if repository.current_branch else "HEAD"
        raise _refused(f"{on} has no commit yet in {repository.root}", "`git commit` first")


def _resolve(repository: Repository, ref: str) -> str:
    try:
        done = repository.git.run("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    except GitFailed as error:
        raise BangerError(
            ErrorCode.NOT_FOUND,
            f"{repository.root} has no commit {ref}",
            details=error.details,
            hint="`git branch -a` and `git log` list what there is; `git fetch` brings more",
        ) from error
    return done.stdout.decode("ascii").strip()


def _check_branch(repository: Repository, branch: str, base: str, mode: str) -> None:
    checked = repository.git.run("check-ref-format", "--branch", branch, ok=(0, 1, 128))
    # what it gives back differs for @{-1}: that means a branch, and is no name
    same = checked.status == 0 and os.fsdecode(checked.stdout).rstrip("\n") == branch
    if not same or branch in ("@", "HEAD") or not _is_text(branch):
        raise _refused(f"{branch!a} is no name for a branch", "`git help check-ref-format` says what is")
    if mode != FULL:
        return
    names = repository.git.run("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads")
    for line in os.fsdecode(names.stdout).splitlines():
        commit, _, ref = line.partition(" ")
        name = ref.removeprefix("refs/heads/")
        if name == branch and commit != base:
            raise _refused(
                f"branch {branch} is there already, elsewhere than the guest's is to begin",
                f"another name, or --branch {branch} --from {branch}",
            )
        if name.startswith(f"{branch}/") or branch.startswith(f"{name}/"):
            raise _refused(f"branch {branch} cannot be beside {name}", "another name")


def _check_submodules(
    repository: Repository, entries: tuple[Entry, ...], mode: str, *, other: str
) -> list[bytes]:
    """Their paths. other: the commit that travels instead of the work tree."""
    listed = _list_gitlinks(repository, other) if other else [e.path for e in entries if e.mode == GITLINK]
    paths = sorted(set(listed))
    if not paths:
        return []
    some = ", ".join(os.fsdecode(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    if mode != FULL:
        raise _refused(f"{repository.root} has submodules ({some})", f"--mode {FULL} brings them along")
    if other:
        raise _refused(
            f"submodules ({some}) come as they are checked out, and --from names another commit",
            "check that commit out first; `git worktree add` does it beside yours",
        )
    return paths


def _list_gitlinks(repository: Repository, commit: str) -> list[bytes]:
    listed = repository.git.run("ls-tree", "-r", "-z", "--full-tree", commit).stdout.split(b"\0")
    return [record.partition(b"\t")[2] for record in listed if record.startswith(GITLINK.encode())]


def look_into(outer: Source, paths: list[bytes], *, depth: int = 0) -> tuple[Submodule, ...]:
    """The submodules at these paths, and those in them."""
    if depth == MAX_NESTING:
        raise _refused(f"submodules are nested more than {MAX_NESTING} deep", "bring an inner one by itself")
    repository = outer.repository
    names = _names_of(repository)
    found: list[Submodule] = []
    taken: set[str] = set()
    for path in paths:
        name = names.get(path, os.fsdecode(path))
        if not _is_submodule_name(name) or any(_overlap(name, other) for other in taken):
            name = "banger-" + path.hex()
        taken.add(name)
        url = repository.config.get(f"submodule.{name}.url")
        found.append(Submodule(path, name, url, _submodule(outer, path, depth)))
    return tuple(found)


def _submodule(outer: Source, path: bytes, depth: int) -> Source | None:
    """None: there is no work tree of its own at that path."""
    account = outer.account
    where = os.path.join(outer.root, os.fsdecode(path))
    with acting_as(account):
        if os.path.realpath(where) != where or not os.path.lexists(os.path.join(where, ".git")):
            return None
    try:
        inner = open_repository(where, account)
    except BangerError:
        return None
    if inner.root != where or not inner.head_commit or inner.object_format != "sha1":
        return None
    entries = read_entries(inner.git.run)
    gitlinks = sorted({entry.path for entry in entries if entry.mode == GITLINK})
    branch = inner.current_branch if _is_text(inner.current_branch) else ""
    source = replace(
        outer,
        path=where,
        root=inner.root,
        name=os.path.basename(inner.root),
        head_commit=inner.head_commit,
        current_branch=branch,
        base_commit=inner.head_commit,
        branch_name=branch,
        repository=inner,
        entries=entries,
        submodules=(),
    )
    return replace(source, submodules=look_into(source, gitlinks, depth=depth + 1))


def _names_of(repository: Repository) -> dict[bytes, str]:
    """Path to name, as .gitmodules has them."""
    done = repository.git.run(
        "config", "--file", os.path.join(repository.root, ".gitmodules"), "--list", "-z", ok=(0, 1, 128)
    )
    values: dict[str, str] = {}
    for entry in os.fsdecode(done.stdout).split("\0"):
        key, newline, value = entry.partition("\n")
        if newline:
            values[key] = value
    listed = Config(values)
    return {os.fsencode(listed.get(f"submodule.{n}.path")).rstrip(b"/"): n for n in listed.names("submodule")}


def _is_submodule_name(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return (
        name.isprintable() and not name.startswith("/") and not any(part in ("", ".", "..") for part in parts)
    )


def _overlap(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}/") or other.startswith(f"{name}/")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(why: str, hint: str) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, why, hint=hint)
