"""Staging folders, locks and publication: how slow work becomes visible at once or not at all.

Every artifact (kernel, image, tool) is made in `PARENT/.staging-<name>` under the flock
`PARENT/.lock-<name>` and published by one rename. Whoever holds the lock may remove a staging
folder of that name: its maker is dead. After a crash nothing but the staging folder is left, which the
next daemon removes, or the next try for that name. Used by the image room only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError, from_os_error
from banger.system.lockorder import Rank, drop, take

log = logging.getLogger(__name__)

LEFT_BY_MAKERS = (".staging-", ".build-", ".old-")
LOCK_WAIT_S = 3600.0
"""How long one waits for another process that makes the same thing (an image takes minutes)."""
_LOCK_LOOK_S = 0.1
_RANKS = {"images": Rank.IMAGE, "kernels": Rank.KERNEL, "tools": Rank.TOOL, "downloads": Rank.DOWNLOAD}
"""Of the locks in a folder: an image may wait for its kernel, that for a tool, that for a download."""


@contextlib.asynccontextmanager
async def exclusive(
    lock: Path, *, timeout_s: float = LOCK_WAIT_S, waiting: Callable[[], None] | None = None
) -> AsyncIterator[int]:
    """Hold an flock on the file `lock` (made, and left). `waiting` is called once if another has it.

    Yields the lock's descriptor: a program that inherits it holds the lock until it ends as well.

    The lock is looked at every 0.1 s and not waited for in a thread: a thread in flock(2) could not be
    cancelled. It belongs to the open file, so it excludes tasks of this process as well.
    """
    rank = _RANKS.get(lock.parent.name)
    hold = take(rank, lock.name.removeprefix(".lock-")[:16]) if rank else None
    try:
        async with _flock(lock, timeout_s=timeout_s, waiting=waiting) as descriptor:
            yield descriptor
    finally:
        drop(hold)


@contextlib.asynccontextmanager
async def _flock(lock: Path, *, timeout_s: float, waiting: Callable[[], None] | None) -> AsyncIterator[int]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, f"making {lock}") from error
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise from_os_error(error, f"locking {lock}") from error
            if not told and waiting is not None:
                waiting()
            told = True
            if asyncio.get_running_loop().time() >= deadline:
                raise ImageError(ErrorCode.BUSY, f"another process has held {lock} for {timeout_s:.0f} s")
            await asyncio.sleep(_LOCK_LOOK_S)
        yield descriptor
    finally:
        os.close(descriptor)


async def sweep(folder: Path, remove: Callable[[Path], Awaitable[None]]) -> list[str]:
    """Remove what killed makers have left in a folder of artifacts; the names of what went.

    remove: of one path. What has a maker that lives, in whatever process, is locked, and stays. What cannot
    be removed stays, too, and is logged: the next try for that name says why.
    """
    gone: list[str] = []
    for path in await asyncio.to_thread(_left_by_makers, folder):
        kind, _, name = path.name[1:].partition("-")
        try:
            if kind == "old":  # moved aside to be removed: nobody goes back to it
                await remove(path)
            else:
                async with exclusive(folder / f".lock-{name}", timeout_s=0):
                    await remove(path)
        except BangerError as error:
            if error.code is not ErrorCode.BUSY:
                log.warning("%s stays: %s", path, error.brief)
        except OSError as error:
            log.warning("%s stays: %s", path, error)
        else:
            log.info("removed %s, which a killed maker had left", path)
            gone.append(path.name)
    return gone


def _left_by_makers(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(LEFT_BY_MAKERS))
    except FileNotFoundError:
        return []


def remove_tree(path: Path) -> None:
    """Remove a folder or file; not being there is no error. Blocking.

    A tree with something mounted in it is refused (CLEANUP_FAILED): what is mounted is not ours to remove.
    """
    mounts = mounts_below(path)
    if mounts:
        raise ImageError(
            ErrorCode.CLEANUP_FAILED,
            f"{path} cannot be removed: something is mounted at {mounts[0]}",
            hint=f"unmount what `findmnt` shows below {path}",
        )
    try:
        shutil.rmtree(path)
    except NotADirectoryError:
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass


def mounts_below(path: Path) -> list[str]:
    """Mount points at or below a path, the deepest first. Blocking."""
    real = os.path.realpath(path)
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        # blanks and the like are octal there
        point = os.fsdecode(
            re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), fields[4])
        )
        if point == real or point.startswith(real.rstrip("/") + "/"):
            found.append(point)
    return sorted(found, key=len, reverse=True)


@contextlib.asynccontextmanager
async def staged(
    final: Path,
    *,
    waiting: Callable[[], None] | None = None,
    already: Callable[[], bool] | None = None,
) -> AsyncIterator[Path | None]:
    """Make the folder `final`: yields its staging folder, and renames it into place at a clean end.

    Yields None when `already()` says so under the lock: another process made it meanwhile. What the
    staging folder holds is gone after an error. An existing `final` is replaced.
    """
    async with exclusive(final.parent / f".lock-{final.name}", waiting=waiting):
        if already is not None and already():
            yield None
            return
        async with filled(final, name=final.name, what=f"making {final}") as staging:
            yield staging


@contextlib.asynccontextmanager
async def filled(final: Path, *, name: str, what: str) -> AsyncIterator[Path]:
    """The same under a lock that the caller has: `.staging-<name>` beside `final`. what: for errors."""
    staging = final.parent / f".staging-{name}"
    try:
        await asyncio.to_thread(remove_tree, staging)
        staging.mkdir(mode=0o755)
        yield staging
        await asyncio.to_thread(publish, staging, final)
    except OSError as error:
        raise from_os_error(error, what) from error
    finally:
        await asyncio.to_thread(remove_tree, staging)


def publish(staging: Path, final: Path) -> None:
    """Rename staging to final, once its files are on disk. Blocking.

    An older `final` is moved aside first and then removed; a crash between the two renames leaves no
    `final`, which the next try makes again.
    """
    for folder, _, files in os.walk(staging):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink() and path.stat().st_size > (1 << 20):
                # small files follow with the journal's commit of the folder; big ones are worth the wait
                _fsync(path)
    _fsync(staging)
    aside = final.parent / f".old-{final.name}"
    remove_tree(aside)
    try:
        final.rename(aside)
    except FileNotFoundError:
        pass
    staging.rename(final)
    _fsync(final.parent)
    remove_tree(aside)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new one. Blocking."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_space(folder: Path, needed: int, *, what: str, keep: int = 1 << 30) -> None:
    """Refuse when `needed` bytes would leave less than `keep` (1 GiB, SPEC §1) on folder's disk. Blocking."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free - needed < keep:
        raise BangerError(
            ErrorCode.NO_SPACE,
            f"{what} needs {needed >> 20} MiB and would leave less than {keep >> 20} MiB free in {folder}",
            hint="free some space, or set BANGER_HOME to a folder on a larger disk",
            data={"needed": needed, "free": free},
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
