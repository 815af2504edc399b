"""The folders that a hostile archive is unpacked through: a stack of descriptors, opened one below the other.

For client/copyextract.py. No name of an archive is ever a path: each part is opened with O_NOFOLLOW below the
folder before it, so that none leads out. A folder that was not there has a temporary name until it is left;
until then nobody sees what is in it. give_up() removes what is unfinished, from whatever point on: names are
noted before they are made, as an interrupt may come at any time.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple

from banger.client import copytar
from banger.errors import BangerError, ErrorCode

MAX_DEPTH = 900
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_NAMES = frozenset({b"", b".", b".."})
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
_LEADS_OUT = "path that leads out of what is copied"


class Target(NamedTuple):
    """Where an archive's top goes. name: b"" for into the folder itself. shown: for messages."""

    folder: int
    name: bytes
    shown: str
    owners: bool


class Refused(Exception):
    """What a guest's archive asks for and does not get: a noun, without its path."""


class Keeping:
    """What of an entry's owner, mode and time the files here get."""

    def __init__(self, *, owners: bool) -> None:
        self.owners = owners and os.geteuid() == 0
        self.bits = 0o7777 if self.owners else 0o777
        self.umask = _umask()
        self._now = time.time_ns()

    def apply(self, fd: int, head: copytar.Head, *, always: bool = False) -> None:
        """always: the mode was not given when the file was made."""
        if self.owners:
            os.fchown(fd, head.uid, head.gid)
        mode = head.mode & self.bits
        # behind the owner, whose change takes set-id bits away, which open never gives
        if always or mode & (self.umask | 0o7000):
            os.fchmod(fd, mode)
        os.utime(fd, ns=(self._now, head.mtime_ns))

    def apply_by_name(self, name: bytes, folder: int, head: copytar.Head) -> None:
        """To what is no file and no folder; the mode is given when it is made."""
        if self.owners:
            os.chown(name, head.uid, head.gid, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=(self._now, head.mtime_ns), dir_fd=folder, follow_symlinks=False)


class _Level:
    __slots__ = ("fd", "fresh", "made", "meta", "name", "temporary")

    def __init__(self, fd: int, name: bytes, *, fresh: bool = False, temporary: bytes = b"") -> None:
        self.fd = fd
        self.name = name
        self.fresh = fresh
        """Nobody sees it yet: what is in it needs no temporary names."""
        self.made = fresh
        self.temporary = temporary
        self.meta: copytar.Head | None = None


class Folders:
    """place() and open() go where an entry is to be; finish() or give_up() at the end."""

    def __init__(self, target: Target, keeping: Keeping) -> None:
        self._target = target
        self._keeping = keeping
        self._levels: list[_Level] = []
        self._path = b""
        self._marker = os.urandom(8).hex().encode()
        self._temporaries = 0

    def temporary(self) -> bytes:
        self._temporaries += 1
        return b".banger-cp-%b-%x" % (self._marker, self._temporaries)

    def place(self, path: bytes) -> tuple[int, bytes, bool]:
        """Folder, name in it, and whether the folder is one that nobody sees yet."""
        folder, _, name = path.rpartition(b"/")
        below = folder or path[:1] != b"/"
        if folder == self._path and self._levels and below and name not in _NO_NAMES:
            level = self._levels[-1]
            return level.fd, name, level.fresh
        parts = _parts(path)
        if not parts:
            if self._levels or not self._target.name:
                raise Refused("archive whose top is no folder")
            return self._target.folder, self._target.name, False
        self._enter(parts[:-1])
        level = self._levels[-1]
        return level.fd, parts[-1], level.fresh

    def open(self, head: copytar.Head) -> None:
        """An archive's folder; it gets its owner, mode and time when it is left."""
        self._enter(_parts(head.path))
        level = self._levels[-1]
        # one that was there before stays as it was, unless everything is to be the same
        if level.fresh or self._target.owners:
            level.meta = head

    def find(self, link: bytes) -> tuple[int, bytes]:
        """A hard link's target: its folder as a descriptor of the caller's, and its name."""
        parts = [] if link.startswith(b"/") or b".." in link.split(b"/") else _parts(link)
        if not parts or not self._levels:
            raise Refused("hard link to outside of what is copied")
        common = self._common(parts[:-1])
        fd = os.dup(self._levels[common].fd)
        try:
            for name in parts[common:-1]:
                below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno in _NO_FOLDER:
                raise Refused("hard link through a file or a link") from None
            raise
        return fd, parts[-1]

    def finish(self) -> None:
        """All is there: every folder gets what is its own."""
        while self._levels:
            self._leave()

    def give_up(self) -> None:
        while self._levels:
            level = self._levels[-1]
            fd, level.fd = level.fd, -1
            if fd >= 0:
                os.close(fd)
            if level.temporary:
                remove_tree(level.temporary, self._above())
            self._levels.pop()

    def _above(self) -> int:
        return self._levels[-2].fd if len(self._levels) > 1 else self._target.folder

    def _common(self, parts: list[bytes]) -> int:
        """How many of the folders on the stack are on this path too."""
        common = 0
        for level, name in zip(self._levels[1:], parts, strict=False):
            if level.name != name:
                break
            common += 1
        return common

    def _enter(self, parts: list[bytes]) -> None:
        """Make the folder of these names the one on top of the stack."""
        levels = self._levels
        common = self._common(parts)
        while len(levels) > common + 1:
            self._leave()
        if not levels:
            if self._target.name:
                self._push(self._target.folder, self._target.name, fresh=False)
            else:
                levels.append(_Level(os.dup(self._target.folder), b""))
        for name in parts[len(levels) - 1 :]:
            if len(levels) == MAX_DEPTH:
                raise Refused("path that is too deep")
            self._push(levels[-1].fd, name, fresh=levels[-1].fresh)
        self._path = b"/".join(parts)

    def _push(self, parent: int, name: bytes, *, fresh: bool) -> None:
        temporary = b""
        try:
            if not fresh:
                try:
                    self._levels.append(_Level(os.open(name, _FOLDER, dir_fd=parent), name))
                    return
                except FileNotFoundError:
                    temporary = self.temporary()
            level = _Level(-1, name, fresh=True, temporary=temporary)
            self._levels.append(level)
            try:
                os.mkdir(temporary or name, 0o700, dir_fd=parent)
            except FileExistsError:
                level.made = False
            level.fd = os.open(temporary or name, _FOLDER, dir_fd=parent)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                raise Refused("path through a file or a link") from None
            raise

    def _leave(self) -> None:
        """The folder on top is done: its owner, mode and time, its name."""
        level = self._levels[-1]
        if level.meta is not None:
            self._keeping.apply(level.fd, level.meta, always=True)
        elif level.made:
            os.fchmod(level.fd, 0o777 & ~self._keeping.umask)
        if level.temporary:
            above = self._above()
            os.rename(level.temporary, level.name, src_dir_fd=above, dst_dir_fd=above)
            level.temporary = b""
        fd, level.fd = level.fd, -1
        os.close(fd)
        self._levels.pop()


def _parts(path: bytes) -> list[bytes]:
    """The names of a path that leads nowhere else."""
    parts = [part for part in path.split(b"/") if part and part != b"."]
    if path.startswith(b"/") or b".." in parts or len(path) > copytar.MAX_PATH:
        raise Refused(_LEADS_OUT)
    return parts


def _umask() -> int:
    """This process's, read without setting it."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def failure(error: OSError, shown: str) -> BangerError:
    """shown: the path that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = ErrorCode.NO_SPACE if full else ErrorCode.PERMISSION_DENIED
    if not full and error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        code = ErrorCode.INVALID_ARGUMENT
    return BangerError(code, f"cannot write {shown}: {error.strerror}")


def unlink(name: bytes, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


def remove_tree(name: bytes, folder: int) -> None:
    """What could not be finished and all below it, as far as that goes; links are not followed."""
    if unlink(name, folder):
        return
    stack: list[tuple[int, bytes, int, list[bytes]]] = []
    above, fd = folder, _open_to_empty(name, folder)
    while fd >= 0 or stack:
        if fd >= 0:
            stack.append(
                (above, name, fd, [n for n in map(os.fsencode, os.listdir(fd)) if not unlink(n, fd)])
            )
        above, name, fd, left = stack[-1]
        if left:
            above, name = fd, left.pop()
            fd = _open_to_empty(name, above)
        else:
            os.close(fd)
            stack.pop()
            fd = -1
            with suppress(OSError):
                os.rmdir(name, dir_fd=above)


def _open_to_empty(name: bytes, folder: int) -> int:
    """-1 where that cannot be. The folders here are ours, and may have got their modes already."""
    with suppress(OSError):
        try:
            fd = os.open(name, _FOLDER, dir_fd=folder)
        except PermissionError:
            os.chmod(name, 0o700, dir_fd=folder)
            fd = os.open(name, _FOLDER, dir_fd=folder)
        with suppress(OSError):
            os.fchmod(fd, 0o700)
        return fd
    return -1
