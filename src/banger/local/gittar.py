"""Writes what travels as one tar stream: a repository and the files of its work tree, as root's.

For local/gittravel.py. Modes and times are kept, links stay links, names are bytes. A file that is not what
it was when it was listed ends the stream with an error: what comes of a half read file must not look like
work. Reads only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from banger.client import copytar
from banger.errors import BangerError, ErrorCode
from banger.local.gitfiles import Descent, File, Parts, changed, open_file, read_link, split

PIECE = 256 << 10
"""What a frame to the agent holds."""
SMALL = 64 << 10
_WRITE_BITS = 0o222
_NEVER_WRITTEN = 0o444

Write = Callable[[bytes | memoryview], object]


class TarWriter:
    """Entries one after the other, then close(). top: the name of the folder that all is in."""

    def __init__(self, write: Write, top: bytes, *, readonly: bool) -> None:
        self._write = write
        self._top = top
        self._off = _WRITE_BITS if readonly else 0
        self._pieces: list[bytes] = []
        self._gathered = 0

    def close(self) -> None:
        self._put(copytar.END)
        self._flush()

    def folder(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """A folder on the way to others, or one without files. path: "" is the top."""
        self._head(path, copytar.FOLDER, mode & ~self._off, mtime_ns)

    def text(self, path: bytes, data: bytes, mtime_ns: int) -> None:
        """A small file that is on no disk."""
        self._head(path, copytar.FILE, 0o644, mtime_ns, size=len(data))
        self._put(data + copytar.padding(len(data)))

    def work_tree(self, prefix: bytes, root: str, files: Iterable[File]) -> None:
        """Sorted files, each with the folders on its way when they are entered. prefix: "" or `sub/`.

        The top itself is left to `folder`.
        """
        with Descent(root) as descent:
            known: Parts | None = None if prefix else ()
            for file in files:
                folders, _ = split(file.path)
                if folders != known:
                    self._folders(prefix, descent, known, folders)
                    known = folders
                self._one(prefix, descent, file)

    def git_folder(self, at: bytes, folder: str) -> None:
        """A repository of banger's own making, whole."""
        status = os.stat(folder)
        self._head(at, copytar.FOLDER, 0o755, status.st_mtime_ns)
        with os.scandir(os.fsencode(folder)) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            path = at + b"/" + entry.name
            if entry.is_dir(follow_symlinks=False):
                self.git_folder(path, os.fsdecode(entry.path))
                continue
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                mode = 0o644 if status.st_mode & _WRITE_BITS else _NEVER_WRITTEN
                self._head(path, copytar.FILE, mode, status.st_mtime_ns, size=status.st_size)
                self._data(fd, status.st_size, path)
            finally:
                os.close(fd)

    def _folders(self, prefix: bytes, descent: Descent, known: Parts | None, folders: Parts) -> None:
        for depth in range(len(folders) + 1):
            way = folders[:depth]
            # entered already, and everything in it comes together
            if known is not None and known[:depth] == way:
                continue
            try:
                status = os.fstat(descent.enter(way))
            except OSError as error:
                raise changed(b"/".join(folders)) from error
            path = prefix + b"/".join(way)
            self.folder(path.rstrip(b"/"), status.st_mode, status.st_mtime_ns)

    def _one(self, prefix: bytes, descent: Descent, file: File) -> None:
        path = prefix + file.path
        if stat.S_ISLNK(file.mode):
            link = read_link(descent, file)
            self._head(path, copytar.SYMLINK, 0o777, file.mtime_ns, link=link)
            return
        fd = open_file(descent, file)
        try:
            self._head(path, copytar.FILE, file.mode & ~self._off, file.mtime_ns, size=file.size)
            self._data(fd, file.size, file.path)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (file.size, file.mtime_ns):
                raise changed(file.path)
        finally:
            os.close(fd)

    def _data(self, fd: int, size: int, path: bytes) -> None:
        at = 0
        while at < size:
            data = os.pread(fd, min(PIECE if size > SMALL else SMALL, size - at), at)
            if not data:
                raise changed(path)
            at += len(data)
            if len(data) > SMALL:
                self._flush()
                self._write(data)
            else:
                self._put(data)
        self._put(copytar.padding(size))

    def _head(
        self, path: bytes, kind: bytes, mode: int, mtime_ns: int, *, size: int = 0, link: bytes = b""
    ) -> None:
        name = b"/".join(part for part in (self._top, path) if part)
        head = copytar.Head(name, kind, mode & 0o777, 0, 0, size, mtime_ns, link, 0, 0)
        try:
            self._put(copytar.make_head(head))
        except ValueError:
            raise BangerError(
                ErrorCode.INVALID_ARGUMENT, f"the name {os.fsdecode(path)[:200]!a}… is too long"
            ) from None

    def _put(self, piece: bytes) -> None:
        """At most SMALL and a header with its records."""
        if self._gathered + len(piece) > PIECE:
            self._flush()
        if len(piece) > SMALL:
            self._flush()
            for at in range(0, len(piece), SMALL):
                self._write(piece[at : at + SMALL])
            return
        self._pieces.append(piece)
        self._gathered += len(piece)

    def _flush(self) -> None:
        if self._gathered:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._gathered = 0
            self._write(whole)
