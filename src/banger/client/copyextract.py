"""A guest's archive becomes files, below one folder and nowhere else. The archive is hostile.

Names are walked folder by folder (dir_fd, O_NOFOLLOW). What is new has a temporary name in the first folder
that was there before and is renamed when it is whole: a file after its last byte, a new folder with all that
is in it when the archive goes on elsewhere. What is broken off is removed; after a kill -9 it stays as
`.banger-cp-…`. Without owners, files are the caller's: no set-id or sticky bits, no devices, no pipes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from banger.client import copytar
from banger.client.copyfolders import Folders, Keeping, Refused, Target, failure, unlink
from banger.client.copystream import BUFFER, CopyStream
from banger.errors import BangerError, ErrorCode

PIECE = BUFFER // 2
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_Make = Callable[[bytes], int | None]
_Maker = Callable[[bytes, int], None]


class Extraction:
    """run() once. left_out: devices, pipes and links to them that were not made."""

    def __init__(self, stream: CopyStream, target: Target) -> None:
        self.left_out = 0
        self._stream = stream
        self._target = target
        self._keeping = Keeping(owners=target.owners)
        self._folders = Folders(target, self._keeping)
        self._begun: tuple[bytes, int] | None = None
        """The temporary name, and its folder, of what is being made: known before it is there."""
        self._path = b""

    def run(self) -> None:
        """All entries, to the agent's word that this was it. BangerError at the first failure."""
        try:
            self._entries()
            self._stream.finish_reading()
            self._folders.finish()
        except copytar.NotTar as error:
            raise self._refused(f"malformed archive ({error})") from None
        except Refused as refused:
            raise self._refused(str(refused)) from None
        except OSError as error:
            raise failure(error, self._shown()) from error
        except (ValueError, OverflowError):  # a NUL in a name, a time or an owner that is none
            raise self._refused("malformed header") from None
        finally:
            if self._begun is not None:
                unlink(*self._begun)
            self._folders.give_up()

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
                self._folders.open(head)
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
        place, name, fresh = self._folders.place(head.path)
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
            self._keeping.apply(fd, head)
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
            if not (self._keeping.owners or (self._target.owners and kind == copytar.FIFO)):
                self.left_out += 1
                return
            type_bits = {copytar.FIFO: stat.S_IFIFO, copytar.CHARACTER: stat.S_IFCHR}.get(kind, stat.S_IFBLK)
            device = os.makedev(head.major, head.minor) if kind != copytar.FIFO else 0
            mode = type_bits | (head.mode & self._keeping.bits)
            umask = os.umask(0)  # a chmod by name might meet another file
            try:
                self._node(head, lambda name, place: os.mknod(name, mode, device, dir_fd=place))
            finally:
                os.umask(umask)
        else:
            raise copytar.NotTar(f"an entry of kind {kind!r}")

    def _node(self, head: copytar.Head, make: _Maker) -> None:
        place, name, fresh = self._folders.place(head.path)
        made, _ = self._make_new(place, name, fresh, lambda n: make(n, place))
        self._keeping.apply_by_name(made, place, head)
        if made != name:
            self._settle(made, name, place)

    def _link(self, head: copytar.Head) -> None:
        place, name, fresh = self._folders.place(head.path)
        folder, target = self._folders.find(head.link)
        try:
            made, _ = self._make_new(
                place,
                name,
                fresh,
                lambda n: os.link(target, n, src_dir_fd=folder, dst_dir_fd=place, follow_symlinks=False),
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
            unlink(made, place)  # where both were names of one file, rename leaves both

    def _make_new(self, place: int, name: bytes, fresh: bool, make: _Make) -> tuple[bytes, int]:
        """Under its own name where nobody sees it, else a temporary one: (that name, what make gave)."""
        if fresh:
            try:
                return name, make(name) or 0
            except FileExistsError:
                pass  # twice in one archive: the later one counts
        temporary = self._folders.temporary()
        self._begun = temporary, place
        return temporary, make(temporary) or 0

    def _settle(self, made: bytes, name: bytes, place: int) -> None:
        os.rename(made, name, src_dir_fd=place, dst_dir_fd=place)
        self._begun = None

    # failures

    def _name(self) -> str:
        """The archive's, for a message: the guest's choice, so only what can be printed."""
        name = os.fsdecode(self._path)
        return name if name.isprintable() else ascii(name)[1:-1]

    def _shown(self) -> str:
        path = self._name()
        return self._target.shown if path in ("", ".") else f"{self._target.shown.rstrip('/')}/{path}"

    def _refused(self, what: str) -> BangerError:
        return BangerError(ErrorCode.GUEST_ERROR, f"refused from the guest: a {what}: {self._name()}")
