"""`workspace pull --into DIR`: a new clone made of the kept work alone, where no repository fits it.

Shallow: it ends at the commits that were brought. Made as the user; until it is whole a file in its git
folder says so, and the next try begins anew. No hook or filter is run. For the CLI.
"""

from __future__ import annotations

import asyncio
import os

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, as_user, this_account
from banger.local.asuser import acting_as
from banger.local.git import LONG_S, QUICK_S, Git, GitFailed
from banger.local.gitplaces import prefix_of, present
from banger.local.gitpull import MOST_BYTES, QUIETLY, Moved, Pack, Pulled, fetch, take_tips
from banger.local.kepttips import Kept, WorkRefused
from banger.local.tempgit import OnBytes, TempRepository, refused, temporary
from banger.system.run import run

UNFINISHED = "banger-unfinished"


def clone(
    kept: Kept,
    pack: Pack,
    folder: str,
    *,
    account: Account | None = None,
    on_bytes: OnBytes = lambda _count: None,
    most_bytes: int = MOST_BYTES,
) -> Pulled:
    """A new repository at `folder`, which is missing or empty: the work's refs as a pull would have them, and
    its branch checked out where the guest had it. Blocking. Raises BangerError; what it began it removes."""
    account = this_account() if account is None else account
    folder = os.path.abspath(folder)
    prefix = prefix_of(kept)
    if not kept.tips:
        raise BangerError(
            ErrorCode.NOT_FOUND, f"nothing of {kept.vm_name}'s work is kept: there is no clone to make"
        )
    with temporary(account) as room:
        object_format = "sha256" if len(next(iter(kept.tips.values()))) == 64 else "sha1"
        middle = TempRepository.create(f"{room}/repo.git", account, object_format=object_format)
        if kept.cut:
            middle.write("shallow", "".join(f"{commit}\n" for commit in kept.cut).encode())
        middle.receive(pack(()), most_bytes=most_bytes, on_bytes=on_bytes)
        tips = dict(kept.tips)
        if kept.head and present(middle, [kept.head]):
            tips.setdefault("HEAD", kept.head)
        cut = sorted(present(middle, kept.cut))
        middle.write("shallow", "".join(f"{commit}\n" for commit in cut).encode())
        take_tips(middle, tips, set())
        fresh = _begin(account, folder, f"{room}/template", object_format)
        try:
            git = Git(folder, account)
            fetch(git, middle.folder, tips, "--update-shallow")
            _finish(git, kept, prefix, tips)
            _as_user(account, "rm", "-f", "--", f"{folder}/.git/{UNFINISHED}")
        except BaseException:
            _as_user(account, "rm", "-rf", "--", *([folder] if fresh else [f"{folder}/.git"]))
            raise
    return Pulled(folder, prefix, tuple(Moved(name, "", commit) for name, commit in sorted(tips.items())))


def _begin(account: Account, folder: str, template: str, object_format: str) -> bool:
    """Make the folder, marked as unfinished; whether it was not there before."""
    fresh = True
    with acting_as(account):
        try:
            there = os.listdir(folder)
            fresh = False
        except FileNotFoundError:
            there = []
        except OSError as error:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, f"{folder!a}: {error.strerror}") from error
        unfinished = os.path.exists(f"{folder}/.git/{UNFINISHED}")
    if there and not unfinished:
        raise BangerError(
            ErrorCode.ALREADY_EXISTS,
            f"{folder!a} exists and is not empty",
            hint="give --into a folder that is not there yet; a repository is given without --into",
        )
    if there:
        _as_user(account, "find", folder, "-mindepth", "1", "-delete")
    _as_user(account, "mkdir", "-p", "--", template, folder)
    _as_user(account, "touch", "--", f"{template}/{UNFINISHED}")
    argv = ["init", "--quiet", f"--template={template}", f"--object-format={object_format}"]
    try:
        Git(folder, account).run(*argv)
    except GitFailed as error:
        raise BangerError(error.code, f"{folder!a}: {error.message}", details=error.details) from error
    return fresh


def _finish(git: Git, kept: Kept, prefix: str, tips: dict[str, str]) -> None:
    made = {f"{prefix}{name}": commit for name, commit in tips.items()}
    head = tips.get(f"heads/{kept.branch}") or tips.get("HEAD", "") if kept.branch else tips.get("HEAD", "")
    if head and kept.branch:
        made[f"refs/heads/{kept.branch}"] = head
    lines = "".join(f"create {name}\0{commit}\0" for name, commit in made.items())
    try:
        git.run(*QUIETLY, "update-ref", "--stdin", "-z", input=lines.encode())
        if head and kept.branch:
            git.run("symbolic-ref", "HEAD", f"refs/heads/{kept.branch}")
        elif head:
            git.run("update-ref", "--no-deref", "HEAD", head)
        if head:
            git.run("read-tree", "--reset", "-u", "HEAD", timeout_s=LONG_S, env=_no_filters(git))
    except GitFailed as error:
        raise refused(error) from error


def _no_filters(git: Git) -> dict[str, str]:
    """Drivers of the user's own configuration (git-lfs) are not for what a guest wrote."""
    listed = git.run("config", "--name-only", "--get-regexp", r"^filter\.", ok=(0, 1)).stdout
    drivers = sorted({line.split(".", 1)[1].rpartition(".")[0] for line in os.fsdecode(listed).splitlines()})
    pairs = [
        (f"filter.{driver}.{key}", value)
        for driver in drivers
        for key, value in (("smudge", ""), ("process", ""), ("required", "false"))
    ]
    env = {"GIT_CONFIG_COUNT": str(len(pairs))} if pairs else {}
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    return env


def _as_user(account: Account, *argv: str) -> None:
    try:
        asyncio.run(run(as_user(argv, account), timeout_s=QUICK_S, env=account.env, cwd="/"))
    except BangerError as error:
        if argv[0] == "mkdir":
            raise WorkRefused(f"{argv[-1]!a} cannot be made: {error.brief}") from error
        raise
