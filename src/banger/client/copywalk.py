"""A tree of the host's becomes an archive: what `vm cp` sends into a guest.

Folders come before what is in them, hard links by name after the first, holes are left out. Symbolic links
are archived, never followed; folders are entered with O_NOFOLLOW. Small files are gathered, big ones go from
the page cache to the socket. Reads only: nothing is left after a crash.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from banger.client import copytar
from banger.client.copystream import CopyStream
from banger.errors import BangerError, ErrorCode

MAX_DEPTH = 900
MAX_LINKS = 1 << 20
"""Files with more than one name that are remembered; past that each name is sent as a file of its own."""
MAX_EXTENTS = 1 << 16
SMALL = 64 << 10
GATHER = 128 << 10
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Walk:
    """run() once. left_out: sockets, and without owners devices and pipes. shown: the source's name."""

    def __init__(self, stream: CopyStream, *, owners: bool, shown: str) -> None:
        self.left_out = 0
        self._stream = stream
        self._owners = owners
        self._shown_top = shown.rstrip("/") or "/"
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self, top: int | None, status: os.stat_result, link: bytes) -> None:
        """top: the source's descriptor, which is closed; None for a link (to `link`) or a special file."""
        if top is None:
            self._special(b".", status, link)
        elif stat.S_ISDIR(status.st_mode):
            self._tree(top, status)
        else:
            try:
                self._file(b".", top, status)
            finally:
                os.close(top)
        self._put(copytar.END)
        self._flush()

    def _tree(self, top: int, status: os.stat_result) -> None:
        """Depth first, without recursion: one descriptor and one listing for each folder on the way."""
        self._put(self._head(b".", copytar.FOLDER, status))
        stack: list[tuple[int, bytes, Iterator[os.DirEntry[str]]]] = [(top, b"", iter(()))]
        try:
            stack[0] = (top, b"", self._list(top, b""))
            while stack:
                fd, prefix, entries = stack[-1]
                for entry in entries:
                    name = os.fsencode(entry.name)
                    below = self._entry(fd, name, prefix + name, entry)
                    if below is not None:
                        if len(stack) == MAX_DEPTH:
                            os.close(below)
                            raise self._failed("folders lie too deep", prefix + name)
                        stack.append((below, prefix + name + b"/", iter(())))
                        stack[-1] = (below, prefix + name + b"/", self._list(below, prefix + name))
                        break
                else:
                    os.close(fd)
                    stack.pop()
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _list(self, fd: int, path: bytes) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(fd) as found:
                return iter(list(found))
        except OSError as error:
            raise self._failed(error.strerror, path) from error

    def _entry(self, folder: int, name: bytes, path: bytes, entry: os.DirEntry[str]) -> int | None:
        """Archive one name; the descriptor of a folder, whose content comes next."""
        try:
            if entry.is_file(follow_symlinks=False):
                fd = os.open(name, _READ, dir_fd=folder)
                try:
                    status = os.fstat(fd)
                    if stat.S_ISREG(status.st_mode):
                        self._file(path, fd, status)
                finally:
                    os.close(fd)
            elif entry.is_dir(follow_symlinks=False):
                fd = os.open(name, _FOLDER, dir_fd=folder)
                self._put(self._head(path, copytar.FOLDER, os.fstat(fd)))
                return fd
            else:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                link = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else b""
                self._special(path, status, link)
        except FileNotFoundError:
            pass  # gone since the folder was listed
        except OSError as error:
            raise self._failed(error.strerror, path) from error
        return None

    def _special(self, path: bytes, status: os.stat_result, link: bytes) -> None:
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            self._put(self._head(path, copytar.SYMLINK, status, link=link))
        elif stat.S_ISSOCK(mode) or not self._owners:
            self.left_out += 1
        elif stat.S_ISFIFO(mode):
            self._put(self._head(path, copytar.FIFO, status))
        else:
            kind = copytar.CHARACTER if stat.S_ISCHR(mode) else copytar.BLOCK_DEVICE
            self._put(self._head(path, kind, status))

    def _file(self, path: bytes, fd: int, status: os.stat_result) -> None:
        size = status.st_size
        if status.st_nlink > 1:
            known = (status.st_dev, status.st_ino)
            first = self._links.get(known)
            if first is not None:
                self._put(self._head(path, copytar.LINK, status, link=first))
                return
            if len(self._links) < MAX_LINKS:
                self._links[known] = path
        if status.st_blocks * 512 < size:
            extents = _extents(fd, size)
            if extents is not None:
                self._sparse(path, fd, status, extents)
                return
        self._put(self._head(path, copytar.FILE, status, size=size))
        self._data(path, fd, 0, size)
        if -size % copytar.BLOCK:
            self._put(copytar.padding(size))

    def _sparse(self, path: bytes, fd: int, status: os.stat_result, extents: list[tuple[int, int]]) -> None:
        table = copytar.make_map(extents)
        stored = len(table) + sum(length for _, length in extents)
        head = self._entry_head(path, copytar.FILE, status, size=stored)
        self._put(self._made(head, status.st_size))
        for at in range(0, len(table), SMALL):
            self._put(table[at : at + SMALL])
        for offset, length in extents:
            self._data(path, fd, offset, length)
        self._put(copytar.padding(stored))

    def _data(self, path: bytes, fd: int, offset: int, length: int) -> None:
        if length <= SMALL:
            data = os.pread(fd, length, offset)
            if len(data) == length:
                self._put(data)
                return
        else:
            self._flush()
            if self._stream.send_file(fd, offset, length):
                return
        raise self._failed("it became shorter while it was read", path)

    # headers and pieces

    def _head(
        self, path: bytes, kind: bytes, status: os.stat_result, *, size: int = 0, link: bytes = b""
    ) -> bytes:
        return self._made(self._entry_head(path, kind, status, size=size, link=link), None)

    @staticmethod
    def _entry_head(
        path: bytes, kind: bytes, status: os.stat_result, *, size: int = 0, link: bytes = b""
    ) -> copytar.Head:
        device = status.st_rdev if kind in (copytar.CHARACTER, copytar.BLOCK_DEVICE) else 0
        return copytar.Head(
            path,
            kind,
            status.st_mode & 0o7777,
            status.st_uid,
            status.st_gid,
            size,
            status.st_mtime_ns,
            link,
            os.major(device),
            os.minor(device),
        )

    def _made(self, head: copytar.Head, real_size: int | None) -> bytes:
        try:
            return copytar.make_head(head, sparse_realsize=real_size)
        except ValueError:
            raise self._failed("the name is too long", head.path) from None

    def _put(self, piece: bytes) -> None:
        """At most SMALL and a little."""
        self._pieces.append(piece)
        self._gathered += len(piece)
        if self._gathered >= GATHER:
            self._flush()

    def _flush(self) -> None:
        if self._gathered:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._gathered = 0
            self._stream.send(whole)

    def _failed(self, why: str | None, path: bytes) -> BangerError:
        name = os.fsdecode(path)
        shown = self._shown_top if name in ("", ".") else f"{self._shown_top.rstrip('/')}/{name}"
        return BangerError(ErrorCode.PERMISSION_DENIED, f"cannot copy {shown}: {why}")


def _extents(fd: int, size: int) -> list[tuple[int, int]] | None:
    """(offset, length) of a file's data; None where there are no holes, or nobody knows."""
    extents: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == 6:  # ENXIO: a hole up to the end
                break
            return None
        if data >= size:
            break
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        if len(extents) == MAX_EXTENTS - 2:
            hole = size
        extents.append((data, hole - data))
        at = hole
    if at < size:  # a hole at the end: GNU tar knows the size by an empty piece there
        extents.append((size, 0))
    return extents if sum(length for _, length in extents) < size else None
