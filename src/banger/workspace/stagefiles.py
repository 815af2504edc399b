"""A tree of a guest's names (stagetree.py) as files in a private folder of the host's.

Used by stage.py. Folders are 0700, files 0644 or 0755, and symlinks are made when everything else is there,
so that nothing is ever written through one. Contents go from the tar to their files in the kernel; holes stay
holes. Bounded in bytes. Blocking; whatever it leaves is in the folder, which is the caller's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from banger.errors import BangerError, ErrorCode
from banger.model.notes import Notes
from banger.system.diskroom import DiskRoom
from banger.system.tarheaders import FILE, FOLDER, SYMLINK
from banger.workspace.errors import WorkNotKept
from banger.workspace.stagetree import Node, not_for_git, shown, unwanted_in_git

_STEP: Final = 1 << 20
_SMALL: Final = 128 << 10
_GIT: Final = b".git"
_NAMES: Final = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST)
"""A name that this host's file system does not take, or takes for another one."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_KERNEL_COPY: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Writer:
    """source: the tar. most_bytes: of all files together, holes included, each hard link counted."""

    def __init__(
        self, source: int, folder: str, *, most_bytes: int, notes: Notes, heard: Callable[[], None]
    ) -> None:
        self._source = source
        self._folder = os.fsencode(folder)
        self._left = self._most = most_bytes
        self._notes = notes
        self._heard = heard
        self._kernel_copies = True
        self._links: list[tuple[bytes, bytes]] = []

    def write(self, top: Node) -> None:
        """Into the folder, which is there and empty. WorkNotKept for too much, NO_SPACE, HOST_UNSUITABLE."""
        self._root = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._room = DiskRoom(self._root)
        try:
            self._write_below(top)
            for path, target in self._links:
                with self._harmless(path):
                    os.symlink(target, path, dir_fd=self._root)
        except OSError as error:
            code = ErrorCode.NO_SPACE if error.errno in _FULL else ErrorCode.HOST_UNSUITABLE
            raise BangerError(code, f"writing the work's files failed: {error.strerror}") from error
        finally:
            os.close(self._root)

    def _write_below(self, top: Node) -> None:
        todo: list[tuple[bytes, Node, bytes | None]] = [(b"", top, None)]
        while todo:
            above, folder, in_git = todo.pop()
            self._heard()
            for name, node in (folder.children or {}).items():
                path = above + name
                inside = in_git + name if in_git is not None else None
                why = unwanted_in_git(inside, node) if inside is not None else self._unwanted(name, node)
                if why is not None:
                    if why:
                        self._notes.add(f"{why} is left out: {shown(path)}")
                    continue
                if node.kind == FOLDER:
                    with self._harmless(path):
                        os.mkdir(path, 0o700, dir_fd=self._root)
                        below = b"" if name == _GIT and inside is None else None
                        todo.append((path + b"/", node, below if inside is None else inside + b"/"))
                elif node.kind == SYMLINK:
                    self._links.append((path, node.target))
                elif node.kind == FILE:
                    with self._harmless(path):
                        self._file(path, node)

    @staticmethod
    def _unwanted(name: bytes, node: Node) -> str | None:
        if name == _GIT:
            return "a .git that is a symlink" if node.kind == SYMLINK else None
        return "a name that git cannot track" if not_for_git(name, node) else None

    @contextlib.contextmanager
    def _harmless(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NAMES:
                raise
            self._notes.add(f"a name that this host does not take is left out: {shown(path)}")

    def _file(self, path: bytes, node: Node) -> None:
        self._left -= node.size
        if self._left < 0:
            raise WorkNotKept(f"its files have more than {self._most >> 20} MiB")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(path, flags, 0o755 if node.executable else 0o644, dir_fd=self._root)
        try:
            if node.pieces is not None:
                for offset, length, position in node.pieces:
                    self._copy(target, offset, length, position=position)
                os.ftruncate(target, node.size)
            elif node.size <= _SMALL:
                self._room.use(node.size)
                _write(target, self._read(node.size, node.position), 0)
            else:
                self._copy_with_holes(target, node)
        finally:
            os.close(target)

    def _copy_with_holes(self, target: int, node: Node) -> None:
        at, end = node.position, node.position + node.size
        while at < end:
            try:
                data = os.lseek(self._source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            if data >= end:
                break
            hole = min(os.lseek(self._source, data, os.SEEK_HOLE), end)
            self._copy(target, data - node.position, hole - data, position=data)
            at = hole
        os.ftruncate(target, node.size)

    def _copy(self, target: int, offset: int, count: int, *, position: int) -> None:
        while count > 0:
            self._heard()
            self._room.use(min(count, 64 * _STEP))
            moved = self._kernel_copy(target, offset, min(count, 64 * _STEP), position=position)
            if not moved:
                moved = min(count, _STEP)
                _write(target, self._read(moved, position), offset)
            offset, position, count = offset + moved, position + moved, count - moved

    def _kernel_copy(self, target: int, offset: int, count: int, *, position: int) -> int:
        """0 where the kernel cannot."""
        if self._kernel_copies:
            try:
                return os.copy_file_range(self._source, target, count, position, offset)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._kernel_copies = False
        return 0

    def _read(self, count: int, position: int) -> bytes:
        data = os.pread(self._source, count, position)
        if len(data) != count:
            raise OSError(errno.EIO, "the archive has become shorter")
        return data


def _write(target: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
