"""Files of a work tree, by descriptor: a name in an index is never opened as a path.

For local/gitplan.py and local/gittar.py. Folders are entered one component at a time with O_NOFOLLOW, so that
a folder swapped for a link leads nowhere; names come sorted, so that each is entered once. What a file was
when it was listed is kept, for whoever reads it later to see that it is still that. Writes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from banger.errors import BangerError, ErrorCode

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

MAX_SMALL = 64 << 20
"""Lists of commits where a history ends, and of what is ignored."""

Parts = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file or link that travels. mode: with its type. mark: what changes when somebody writes to it."""

    path: bytes
    mode: int
    size: int
    mtime_ns: int
    mark: tuple[int, int, int, int]


def mark_of(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Descent:
    """The folders on the way to one file after the other. A context manager."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fds: list[int] = []
        self._parts: Parts = ()

    def __enter__(self) -> Descent:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._fds.append(os.open(self._root, flags))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def enter(self, parts: Parts) -> int:
        """The folder's descriptor, which stays this object's. OSError where it is none, or a link."""
        same = 0
        for mine, other in zip(self._parts, parts, strict=False):
            if mine != other:
                break
            same += 1
        while len(self._fds) > same + 1:
            os.close(self._fds.pop())
        self._parts = parts[:same]
        for part in parts[same:]:
            self._fds.append(os.open(part, _FOLDER, dir_fd=self._fds[-1]))
            self._parts = (*self._parts, part)
        return self._fds[-1]


def split(path: bytes) -> tuple[Parts, bytes]:
    """The folders, and the name in the last of them."""
    *folders, name = path.split(b"/")
    return tuple(folders), name


def sorted_paths(paths: Iterable[bytes]) -> list[bytes]:
    """Depth first: all that is in a folder together."""
    return sorted(set(paths), key=lambda path: path.split(b"/"))


def find_files(root: str, paths: Iterable[bytes]) -> tuple[list[File], list[bytes]]:
    """(files and links that are there, names of those that are not), both sorted.

    What is a folder, a pipe or a device now is not there, as for git. PERMISSION_DENIED for one that is there
    and cannot be read.
    """
    found: list[File] = []
    gone: list[bytes] = []
    with Descent(root) as descent:
        for path in sorted_paths(paths):
            folders, name = split(path)
            try:
                fd = descent.enter(folders)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                gone.append(path)
                continue
            except OSError as error:
                if error.errno == 40:  # ELOOP: a link where the folder was
                    gone.append(path)
                    continue
                raise unreadable(path, error) from error
            if stat.S_ISREG(status.st_mode):
                if not os.access(name, os.R_OK, dir_fd=fd, effective_ids=True):
                    raise unreadable(path, PermissionError(13, "Permission denied"))
            elif not stat.S_ISLNK(status.st_mode):
                gone.append(path)
                continue
            found.append(File(path, status.st_mode, status.st_size, status.st_mtime_ns, mark_of(status)))
    return found, gone


def open_file(descent: Descent, file: File) -> int:
    """A descriptor for what was listed; BUSY where something else is there by now."""
    folders, name = split(file.path)
    try:
        fd = os.open(name, _READ, dir_fd=descent.enter(folders))
    except PermissionError as error:
        raise unreadable(file.path, error) from error
    except OSError as error:
        raise changed(file.path) from error
    if mark_of(os.fstat(fd)) != file.mark:
        os.close(fd)
        raise changed(file.path)
    return fd


def read_link(descent: Descent, file: File) -> bytes:
    """Where a link leads; BUSY where it is none any more."""
    folders, name = split(file.path)
    try:
        fd = descent.enter(folders)
        if mark_of(os.stat(name, dir_fd=fd, follow_symlinks=False)) == file.mark:
            return os.fsencode(os.readlink(name, dir_fd=fd))
    except OSError as error:
        raise changed(file.path) from error
    raise changed(file.path)


def unreadable(path: bytes, error: OSError) -> BangerError:
    return BangerError(
        ErrorCode.PERMISSION_DENIED,
        f"cannot read {os.fsdecode(path)!a}: {error.strerror}",
        hint="it is tracked, and so it would travel: make it readable, or `git rm --cached` it",
    )


def changed(path: bytes) -> BangerError:
    return BangerError(
        ErrorCode.BUSY,
        f"{os.fsdecode(path)!a} changed while the repository was read",
        hint="run the command again when nothing writes there",
    )


# small files


def write_small(folder: str, name: str, data: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def copy_small(source: str, to: str) -> None:
    """Where there is one."""
    data = read_small(source)
    if data is not None:
        with open(to, "wb") as file:
            file.write(data)


def read_small(path: str) -> bytes | None:
    """None where there is no file of at most MAX_SMALL bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SMALL:
            return None
        return file.read(status.st_size)
