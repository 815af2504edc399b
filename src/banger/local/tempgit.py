"""A bare repository of banger's own that is only a step on the way of a pull, in a folder of the user's.

Below their cache folder, made, written and removed as the user (under sudo: as the caller), and held by a
lock on the folder: after a crash the next one to come removes what nobody holds. For local/gitpull.py and
gitclone.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

from banger.local.account import Account, as_user
from banger.local.git import LONG_S, QUICK_S, GitFailed, Scratch
from banger.local.kepttips import WorkRefused
from banger.system.run import Completed, run, run_to_fd
from banger.workspace.packs import TOLERATED

BOUNDS = {"GIT_ALLOC_LIMIT": "1g"}
"""For git's environment: memory for one object, whatever size its header claims. Large files are streamed."""

OnBytes = Callable[[int], None]


class TempRepository(Scratch):
    """Where a pack is taken apart before anything of the user's sees it."""

    @classmethod
    def create(cls, folder: str, account: Account, *, object_format: str) -> TempRepository:
        _as_user(account, "mkdir", "-m", "0700", "--", folder)
        made = cls(folder, account)
        made.run("init", "--quiet", "--bare", f"--object-format={object_format}", "--template=", folder)
        return made

    def write(self, name: str, data: bytes) -> None:
        """A file of its git folder, written as the user: root follows no link of theirs."""
        argv = as_user(["tee", "--", f"{self.folder}/{name}"], self.account)
        asyncio.run(run(argv, timeout_s=QUICK_S, env=self._env, cwd="/", input=data))

    def borrow(self, *folders: str) -> None:
        """The objects of the user's repositories count as this one's."""
        lines: list[bytes] = []
        for folder in folders:
            plain = os.fsencode(folder)
            quoted = (bytes([b]) if 32 <= b < 127 and b not in b'"\\' else b"\\%03o" % b for b in plain)
            lines.append(b'"' + b"".join(quoted) + b'"\n')
        self.write("objects/info/alternates", b"".join(lines))

    def receive(self, pieces: Iterator[bytes], *, most_bytes: int, on_bytes: OnBytes) -> None:
        """A pack: looked at with fsck, bounded, and nothing of it is here when it is broken (WorkRefused)."""

        async def counted() -> AsyncIterator[bytes]:
            count = 0
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                count += len(piece)
                if count > most_bytes:
                    raise WorkRefused(f"the pack of the work is larger than {most_bytes >> 20} MiB")
                on_bytes(count)
                yield piece

        async def index() -> Completed:
            with open(os.devnull, "wb") as nothing:
                return await run_to_fd(
                    as_user(argv, self.account),
                    nothing.fileno(),
                    timeout_s=LONG_S,
                    stdin=counted(),
                    cwd="/",
                    env={**self._env, **BOUNDS},
                    check=False,
                )

        argv = ["git", "-c", "core.bigFileThreshold=64m", "--no-pager", "index-pack", "--fix-thin", "--stdin"]
        argv += [
            "--strict=" + ",".join(f"{name}=ignore" for name in TOLERATED),
            "--threads=2",
            f"--max-input-size={most_bytes}",
        ]
        done = asyncio.run(index())
        if done.status:
            raise refused(GitFailed(argv, done.status, done.stderr))


def refused(error: GitFailed) -> WorkRefused:
    return WorkRefused(
        f"what came of the work is refused by git: {error.message[:300]}", details=error.details
    )


def parent_folder(account: Account) -> str:
    cache = account.env.get("XDG_CACHE_HOME", "")
    if not cache.startswith("/"):
        cache = f"{account.home or os.path.expanduser('~')}/.cache"
    return f"{cache}/banger/git"


@contextlib.contextmanager
def temporary(account: Account) -> Iterator[str]:
    """An empty folder, 0700, gone afterwards. Blocking."""
    parent = parent_folder(account)
    _as_user(account, "mkdir", "-p", "-m", "0700", "--", parent)
    held = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # for as long as sweeping and making one take: nobody removes the new one before it is held
        fcntl.flock(held, fcntl.LOCK_EX)
        _sweep(account, parent)
        folder = f"{parent}/{secrets.token_hex(8)}"
        _as_user(account, "mkdir", "-m", "0700", "--", folder)
        mine = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(mine, fcntl.LOCK_EX)
    finally:
        os.close(held)
    try:
        yield folder
    finally:
        _as_user(account, "rm", "-rf", "--", folder)
        os.close(mine)


def _sweep(account: Account, parent: str) -> None:
    left: list[str] = []
    for name in os.listdir(parent):
        try:
            found = os.open(f"{parent}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # not one of ours
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.append(f"{parent}/{name}")
        except BlockingIOError:
            pass  # somebody pulls
        finally:
            os.close(found)
    if left:
        _as_user(account, "rm", "-rf", "--", *left)


def _as_user(account: Account, *argv: str) -> None:
    asyncio.run(run(as_user(argv, account), timeout_s=LONG_S, env=account.env, cwd="/"))
