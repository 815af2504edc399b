"""A guest's archive becomes files, below one folder and nowhere else. The archive is hostile.

Names are walked folder by folder (dir_fd, O_NOFOLLOW). What is new has a temporary name in the first folder
that was there before and is renamed when it is whole: a file after its last byte, a new folder with all that
is in it when the archive goes on elsewhere. What is broken off is removed; after a kill -9 it stays as
`.banger-cp-…`. Without owners, files are the caller's: no set-id or sticky bits, no devices, no pipes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from banger.client import copytar
from banger.client.copystream import BUFFER, CopyStream
from banger.errors import BangerError, ErrorCode

MAX_DEPTH = 900
PIECE = BUFFER // 2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_NAMES = frozenset({b"", b".", b".."})
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
_Make = Callable[[bytes], int | None]
_Maker = Callable[[bytes, int], None]


class Target(NamedTuple):
    """Where an archive's top goes. name: b"" for into the folder itself. shown: for messages."""

    folder: int
    name: bytes
    shown: str
    owners: bool


class _Level:
    __slots__ = ("fd", "fresh", "made", "meta", "name", "temporary")

    def __init__(self, fd: int, name: bytes, *, fresh: bool, made: bool, temporary: bytes) -> None:
        self.fd = fd
        self.name = name
        self.fresh = fresh
        """Nobody sees it yet: what is in it needs no temporary names."""
        self.made = made
        self.temporary = temporary
        self.meta: copytar.Head | None = None


class Extraction:
    """run() once. left_out: devices, pipes and links to them that were not made."""

    def __init__(self, stream: CopyStream, target: Target) -> None:
        self.left_out = 0
        self._stream = stream
        self._target = target
        self._as_root = os.geteuid() == 0
        self._owners = target.owners and self._as_root
        self._keep = 0o7777 if self._owners else 0o777
        self._masked = _umask()
        self._now = time.time_ns()
        self._marker = os.urandom(8).hex().encode()
        self._temporaries = 0
        self._begun: tuple[bytes, int] | None = None
        """The temporary name, and its folder, of what is being made: known before it is there."""
        self._levels: list[_Level] = []
        self._folder = b""
        self._path = b""

    def run(self) -> None:
        """All entries, to the agent's word that this was it. BangerError at the first failure."""
        try:
            self._entries()
            self._stream.finish_reading()
            while self._levels:
                self._pop(keep=True)
        except copytar.NotTar as error:
            raise self._refused(f"malformed archive ({error})") from None
        except OSError as error:
            raise self._failed(error) from error
        except (ValueError, OverflowError):  # a NUL in a name, a time or an owner that is none
            raise self._refused("malformed header") from None
        finally:
            if self._begun is not None:
                _unlink(*self._begun)
            while self._levels:
                self._pop(keep=False)

    # entries

    def _entries(self) -> None:
        stream = self._stream
        buffer = stream.buffer
        records: dict[bytes, bytes] = {}
        while True:
            if stream.end - stream.start < copytar.BLOCK and not stream.fill(copytar.BLOCK):
                raise copytar.NotTar("cut off")
            head = copytar.read_head(buffer, stream.start)
            stream.start += copytar.BLOCK
            if head.kind == copytar.EXTENDED:
                if records or head.size > copytar.MAX_RECORDS:
                    raise copytar.NotTar("an extended header that is too long")
                records = copytar.read_records(self._take(head.size))
                self._skip(-head.size % copytar.BLOCK)
                continue
            if records:
                head = copytar.with_records(head, records)
            self._path = head.path
            if head.kind == copytar.FILE:
                self._file(head, copytar.sparse_size(records) if records else None)
            elif head.kind == copytar.FOLDER:
                self._make_folder(head)
            elif head.kind == b"\0":
                return
            else:
                self._other(head)
            if records:
                records = {}

    def _take(self, size: int) -> bytes:
        if not self._stream.fill(size):
            raise copytar.NotTar("cut off")
        at = self._stream.start
        self._stream.start = at + size
        return bytes(self._stream.view[at : at + size])

    def _skip(self, size: int) -> None:
        if size:
            self._take(size)

    def _file(self, head: copytar.Head, real_size: int | None) -> None:
        place, name, fresh = self._place(head.path)
        made, fd = self._make_new(
            place, name, fresh, lambda n: os.open(n, _NEW, head.mode & 0o777, dir_fd=place)
        )
        try:
            if real_size is None:
                self._copy(fd, head.size)
            else:
                self._sparse(fd, head.size, real_size)
            if -head.size % copytar.BLOCK:
                self._skip(-head.size % copytar.BLOCK)
            mode = head.mode & self._keep
            if self._owners:
                os.fchown(fd, head.uid, head.gid)
            if mode & self._masked:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(self._now, head.mtime_ns))
        finally:
            os.close(fd)
        if made != name:
            self._settle(made, name, place)

    def _copy(self, fd: int, size: int, offset: int = 0) -> None:
        stream = self._stream
        while size:
            held = stream.end - stream.start
            if held < size and held < PIECE:
                if not stream.fill(min(size, PIECE)):
                    raise copytar.NotTar("cut off")
                held = stream.end - stream.start
            piece = held if held < size else size
            at = stream.start
            wrote = os.pwrite(fd, stream.view[at : at + piece], offset)
            stream.start = at + wrote
            size -= wrote
            offset += wrote

    def _sparse(self, fd: int, size: int, real_size: int) -> None:
        extents, used = self._map(size)
        end = 0
        for offset, length in extents:
            if offset < end or offset + length > real_size:
                raise copytar.NotTar("a map that does not fit its sparse file")
            self._copy(fd, length, offset)
            used += length
            end = offset + length
        if used != size:
            raise copytar.NotTar("a map that does not fit its sparse file")
        os.ftruncate(fd, real_size)

    def _map(self, size: int) -> tuple[list[tuple[int, int]], int]:
        """A sparse file's pieces, and how many bytes of the archive said so."""
        text = bytearray()
        lines, wanted = 0, 1
        while lines < wanted:
            if len(text) >= size:
                raise copytar.NotTar("a malformed map")
            block = self._take(copytar.BLOCK)
            text += block
            lines += block.count(b"\n")
            if wanted == 1 and lines:
                count = text[: text.index(b"\n")]
                if not count.isdigit() or len(count) > 7 or int(count) > copytar.MAX_EXTENTS:
                    raise copytar.NotTar("a malformed map")
                wanted = 1 + 2 * int(count)
        numbers = text.split(b"\n")
        values = [int(number) for number in numbers[1:wanted] if number.isdigit() and len(number) < 20]
        if len(values) != wanted - 1:
            raise copytar.NotTar("a malformed map")
        return list(zip(values[::2], values[1::2], strict=True)), len(text)

    def _other(self, head: copytar.Head) -> None:
        kind = head.kind
        if kind == copytar.LINK:
            self._link(head)
        elif kind == copytar.SYMLINK:
            self._node(head, lambda name, place: os.symlink(head.link, name, dir_fd=place))
        elif kind == copytar.FIFO or kind in (copytar.CHARACTER, copytar.BLOCK_DEVICE):
            if not (self._owners or (self._target.owners and kind == copytar.FIFO)):
                self.left_out += 1
                return
            type_bits = {copytar.FIFO: stat.S_IFIFO, copytar.CHARACTER: stat.S_IFCHR}.get(kind, stat.S_IFBLK)
            device = os.makedev(head.major, head.minor) if kind != copytar.FIFO else 0
            mode = type_bits | (head.mode & self._keep)
            umask = os.umask(0)  # a chmod by name might meet another file
            try:
                self._node(head, lambda name, place: os.mknod(name, mode, device, dir_fd=place))
            finally:
                os.umask(umask)
        else:
            raise copytar.NotTar(f"an entry of kind {kind!r}")

    def _node(self, head: copytar.Head, make: _Maker) -> None:
        place, name, fresh = self._place(head.path)
        made, _ = self._make_new(place, name, fresh, lambda n: make(n, place))
        if self._owners:
            os.chown(made, head.uid, head.gid, dir_fd=place, follow_symlinks=False)
        os.utime(made, ns=(self._now, head.mtime_ns), dir_fd=place, follow_symlinks=False)
        if made != name:
            self._settle(made, name, place)

    def _link(self, head: copytar.Head) -> None:
        parts = _parts(head.link)
        if not parts or not self._levels:
            raise self._refused("hard link to outside of what is copied")
        place, name, fresh = self._place(head.path)
        folder = self._find(parts[:-1])
        try:
            made, _ = self._make_new(
                place,
                name,
                fresh,
                lambda n: os.link(parts[-1], n, src_dir_fd=folder, dst_dir_fd=place, follow_symlinks=False),
            )
        except FileNotFoundError:
            if not self.left_out:
                raise
            self.left_out += 1  # the other name of a device
            return
        finally:
            os.close(folder)
        if made != name:
            self._settle(made, name, place)
            _unlink(made, place)  # where both were names of one file, rename leaves both

    def _make_new(self, place: int, name: bytes, fresh: bool, make: _Make) -> tuple[bytes, int]:
        """Under its own name where nobody sees it, else a temporary one: (that name, what make gave)."""
        if fresh:
            try:
                return name, make(name) or 0
            except FileExistsError:
                pass  # twice in one archive: the later one counts
        temporary = self._temporary()
        self._begun = temporary, place
        return temporary, make(temporary) or 0

    def _settle(self, made: bytes, name: bytes, place: int) -> None:
        os.rename(made, name, src_dir_fd=place, dst_dir_fd=place)
        self._begun = None

    # folders

    def _place(self, path: bytes) -> tuple[int, bytes, bool]:
        """Folder, name in it, and whether the folder is one that nobody sees yet."""
        folder, _, name = path.rpartition(b"/")
        below = folder or path[:1] != b"/"
        if folder == self._folder and self._levels and below and name not in _NO_NAMES:
            level = self._levels[-1]
            return level.fd, name, level.fresh
        parts = _parts(path)
        if parts is None:
            raise self._refused("path that leads out of what is copied")
        if not parts:
            if self._levels or not self._target.name:
                raise self._refused("archive whose top is no folder")
            return self._target.folder, self._target.name, False
        self._enter(parts[:-1])
        level = self._levels[-1]
        return level.fd, parts[-1], level.fresh

    def _make_folder(self, head: copytar.Head) -> None:
        parts = _parts(head.path)
        if parts is None:
            raise self._refused("path that leads out of what is copied")
        self._enter(parts)
        level = self._levels[-1]
        # one that was there before stays as it was, unless everything is to be the same
        if level.fresh or self._target.owners:
            level.meta = head

    def _enter(self, parts: list[bytes]) -> None:
        """Make the folder of these names the one on top of the stack."""
        levels = self._levels
        common = 0
        for level, name in zip(levels[1:], parts, strict=False):
            if level.name != name:
                break
            common += 1
        while len(levels) > common + 1:
            self._pop(keep=True)
        if not levels:
            self._push_top()
        for name in parts[len(levels) - 1 :]:
            if len(levels) == MAX_DEPTH:
                raise self._refused("path that is too deep")
            self._push(levels[-1].fd, name, fresh=levels[-1].fresh)
        self._folder = b"/".join(parts)

    def _push_top(self) -> None:
        if self._target.name:
            self._push(self._target.folder, self._target.name, fresh=False)
        else:
            fd = os.dup(self._target.folder)
            self._levels.append(_Level(fd, b"", fresh=False, made=False, temporary=b""))

    def _push(self, parent: int, name: bytes, *, fresh: bool) -> None:
        temporary = b""
        if not fresh:
            try:
                fd = os.open(name, _FOLDER, dir_fd=parent)
                self._levels.append(_Level(fd, name, fresh=False, made=False, temporary=b""))
                return
            except FileNotFoundError:
                temporary = self._temporary()
            except OSError as error:
                if error.errno in _NO_FOLDER:
                    raise self._refused("path through a file or a link that is there already") from None
                raise
        level = _Level(-1, name, fresh=True, made=True, temporary=temporary)
        self._levels.append(level)  # known before it is there
        try:
            os.mkdir(temporary or name, 0o700, dir_fd=parent)
        except FileExistsError:
            level.made = False
        try:
            level.fd = os.open(temporary or name, _FOLDER, dir_fd=parent)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                raise self._refused("path through a file or a link") from None
            raise

    def _pop(self, *, keep: bool) -> None:
        """The folder on top is done: its owner, mode and time, its name. Or it is given up."""
        level = self._levels.pop()
        parent = self._levels[-1].fd if self._levels else self._target.folder
        try:
            if not keep:
                return
            if level.meta is not None:
                if self._owners:
                    os.fchown(level.fd, level.meta.uid, level.meta.gid)
                os.fchmod(level.fd, level.meta.mode & self._keep)
                os.utime(level.fd, ns=(self._now, level.meta.mtime_ns))
            elif level.made:
                os.fchmod(level.fd, 0o777 & ~self._masked)
            if level.temporary:
                os.rename(level.temporary, level.name, src_dir_fd=parent, dst_dir_fd=parent)
                level.temporary = b""
        finally:
            if level.fd >= 0:
                os.close(level.fd)
            if level.temporary:
                remove_tree(level.temporary, parent)

    def _find(self, parts: list[bytes]) -> int:
        """The folder of these names as a descriptor of the caller's."""
        common = 0
        for level, name in zip(self._levels[1:], parts, strict=False):
            if level.name != name:
                break
            common += 1
        fd = os.dup(self._levels[common].fd)
        try:
            for name in parts[common:]:
                below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno in _NO_FOLDER:
                raise self._refused("hard link through a file or a link") from None
            raise
        return fd

    def _temporary(self) -> bytes:
        self._temporaries += 1
        return b".banger-cp-%b-%x" % (self._marker, self._temporaries)

    # failures

    def _shown(self) -> str:
        path = os.fsdecode(self._path)
        return self._target.shown if path in ("", ".") else f"{self._target.shown.rstrip('/')}/{path}"

    def _refused(self, what: str) -> BangerError:
        return BangerError(
            ErrorCode.GUEST_ERROR, f"refused from the guest: a {what}: {os.fsdecode(self._path)}"
        )

    def _failed(self, error: OSError) -> BangerError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = ErrorCode.NO_SPACE if full else ErrorCode.PERMISSION_DENIED
        if not full and error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            code = ErrorCode.INVALID_ARGUMENT
        return BangerError(code, f"cannot write {self._shown()}: {error.strerror}")


def _parts(path: bytes) -> list[bytes] | None:
    """The names of a path; None for one that may lead elsewhere."""
    if path.startswith(b"/") or len(path) > copytar.MAX_PATH:
        return None
    parts = [part for part in path.split(b"/") if part and part != b"."]
    return None if b".." in parts else parts


def _umask() -> int:
    """This process's, read without setting it."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                # set-id and sticky bits are never set by open
                return int(line.split()[1], 8) | 0o7000
    return 0o7777


def _unlink(name: bytes, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass


def remove_tree(name: bytes, folder: int) -> None:
    """What could not be finished and all below it; links are not followed."""
    try:
        os.unlink(name, dir_fd=folder)
        return
    except OSError:
        pass
    try:
        fd = os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        try:
            os.chmod(name, 0o700, dir_fd=folder)
            fd = os.open(name, _FOLDER, dir_fd=folder)
        except OSError:
            return
    except OSError:
        return
    try:
        os.fchmod(fd, 0o700)
        for below in os.listdir(fd):
            remove_tree(os.fsencode(below), fd)
    except OSError:
        pass
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        pass
