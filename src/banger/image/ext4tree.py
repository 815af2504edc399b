"""A folder of an ext2, ext3 or ext4 in a file, as a tree whose contents stay where they lie.

How /root comes out of a user's own root file system, and a workspace out of a dead VM's work disk: read here,
byte for byte, because mounting needs root, and debugfs lays files out by the names that a stranger's file
system gives. Nothing is written and no name is used on the host. Input is hostile: every offset is inside the
file, every count is bounded, a block of names or extents is read as often as it could be in a sound file
system. Journals are not replayed: one that needs it is refused. Raises IMAGE_INVALID; whoever gives `notes`
gets what can be read instead, and a note for what cannot. Blocking.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from banger.errors import ErrorCode
from banger.image.errors import ImageError, invalid
from banger.image.layertree import MAX_LINKS, MAX_PATH, Folder, Inode, new_folder, shown
from banger.model.notes import Notes
from banger.system.tarheaders import FILE, SYMLINK

MAX_ENTRIES = 1_000_000
_MAGIC = 0xEF53
_ROOT_INODE = 2
_RECOVER, _64BIT = 0x4, 0x80
_KNOWN = 0x2 | 0x40 | _64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
"""Features that do not matter here: filetype, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
inline_data, encrypt, casefold. Inline and encrypted files are refused one by one; the other features
(compression, a journal's own device, meta groups) as a whole."""
_FLAG_EXTENTS, _FLAG_INLINE, _FLAG_ENCRYPTED, _FLAG_COMPRESSED = 0x80000, 0x10000000, 0x800, 0x4
_EXTENT_MAGIC = 0xF30A
_UNWRITTEN = 0x8000
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIH")
_ENTRY = struct.Struct("<IHB")

Run = tuple[int, int, int]
"""(the file's block, how many, the file system's block)."""


@dataclass(frozen=True, slots=True)
class _Raw:
    """An inode as it lies on the disk."""

    mode: int
    size: int
    mtime: int
    flags: int
    block: bytes


class _Spent(ImageError):
    """A bound of the whole reading: it ends there."""


class Ext4:
    """A file system in the open file `descriptor`, which stays the caller's.

    notes: for what is damaged; without them it is an error, and so is a journal that was not replayed.
    heard: called for each folder; what it raises ends the reading.
    """

    def __init__(
        self, descriptor: int, *, notes: Notes | None = None, heard: Callable[[], None] = lambda: None
    ) -> None:
        self._descriptor = descriptor
        self._notes = notes
        self._heard = heard
        self._length = os.fstat(descriptor).st_size
        head = self._read(1024, 1024)
        if struct.unpack_from("<H", head, 0x38)[0] != _MAGIC:
            raise invalid("it is no ext4 file system")
        incompat: int = struct.unpack_from("<I", head, 0x60)[0]
        self.needs_recovery = bool(incompat & _RECOVER)
        if self.needs_recovery and notes is None:
            raise invalid(
                "it was not unmounted: its journal has changes that are not in it yet",
                hint="e2fsck -fp FILE replays them",
            )
        strange = incompat & ~(_KNOWN | _RECOVER)
        if strange:
            raise invalid(f"it has features of ext4 that banger cannot read ({strange:#x})")
        log_block: int = struct.unpack_from("<I", head, 0x18)[0]
        if log_block > 5:
            raise invalid("its blocks are larger than 32 KiB")
        self._block = 1024 << log_block
        self._inodes, self._first_block = struct.unpack_from("<I16xI", head)[0], head[0x14]
        self._per_group: int = struct.unpack_from("<I", head, 0x28)[0]
        revision: int = struct.unpack_from("<I", head, 0x4C)[0]
        self._inode_size: int = struct.unpack_from("<H", head, 0x58)[0] if revision else 128
        self._wide = bool(incompat & _64BIT)
        self._descriptor_size: int = struct.unpack_from("<H", head, 0xFE)[0] if self._wide else 32
        if (
            not 0 < self._per_group <= 8 * self._block
            or not 128 <= self._inode_size <= self._block
            or not 32 <= self._descriptor_size <= 1024
            or self._first_block > 1
        ):
            raise invalid("its superblock makes no sense")
        self._blocks_left = min(self._length // self._block, MAX_ENTRIES)
        self._entries_left = self._pieces_left = MAX_ENTRIES
        self._content_left = self._length

    def folder(self, path: bytes) -> Folder | None:
        """What the folder at `path` below the root has; None where it is missing or no folder.

        No symlink is followed on the way. Files, folders and symlinks with mode and time, all of them root's;
        others are left out. Damage up to this folder's own names is an error in any case.
        """
        number, raw = _ROOT_INODE, self._inode(_ROOT_INODE)
        # must not look like a folder that is missing, or has nothing in it
        notes, self._notes = self._notes, None
        for name in path.split(b"/"):
            wanted = dict(self._names(number, raw, b"/")).get(name)
            if wanted is None:
                return None
            number, raw = wanted, self._inode(wanted)
            if not raw.mode:
                raise _bad("an entry of nothing", path)
            if not stat.S_ISDIR(raw.mode):
                return None
        self._names(number, raw, path)
        self._notes = notes
        return self._fill(number, raw, path)

    def _fill(self, number: int, raw: _Raw, path: bytes) -> Folder:
        top = _folder(raw)
        seen = {_ROOT_INODE, number}
        inodes: dict[int, Inode] = {}
        todo = [(top, number, raw, path)]
        try:
            while todo:
                parent, parent_number, parent_raw, path = todo.pop()
                self._heard()
                for name, child_number in self._names(parent_number, parent_raw, path):
                    where = path + b"/" + name
                    known = inodes.get(child_number)
                    try:
                        if known is not None:
                            self._name_again(known, where)
                            parent.children[name] = known
                            continue
                        child = self._child(child_number, where, seen=seen)
                        if child is None:
                            continue
                        if stat.S_ISDIR(child.mode):
                            folder = _folder(child)
                            parent.children[name] = folder
                            todo.append((folder, child_number, child, where))
                        else:
                            inodes[child_number] = parent.children[name] = self._leaf(child, where)
                    except ImageError as error:
                        self._harm(error, where)
        except _Spent as error:
            self._harm(error, spent=True)
        return top

    def _harm(self, error: ImageError, path: bytes = b"", *, spent: bool = False) -> None:
        """Something is not there: an error, or a note of it."""
        if self._notes is None or (isinstance(error, _Spent) and not spent):
            raise error
        where = f" ({shown(path)})" if path and shown(path) not in error.brief else ""
        self._notes.add(f"the file system is damaged: {error.brief}{where}")

    @staticmethod
    def _name_again(known: Inode, where: bytes) -> None:
        if len(where) > MAX_PATH:
            raise _bad("a path that is too long", where)
        if known.names == MAX_LINKS:
            raise _bad(f"more than {MAX_LINKS} names for one file", where)
        known.names += 1

    def _child(self, number: int, where: bytes, *, seen: set[int]) -> _Raw | None:
        """None for what is left out."""
        if len(where) > MAX_PATH:
            raise _bad("a path that is too long", where)
        child = self._inode(number)
        if stat.S_ISDIR(child.mode):
            if number in seen:
                raise _bad("a folder that is in two places", where)
            seen.add(number)
        elif not stat.S_ISREG(child.mode) and not stat.S_ISLNK(child.mode):
            if not child.mode:
                raise _bad("an entry of nothing", where)
            if self._notes is not None:
                self._notes.add(f"a pipe, socket or device is left out: {shown(where)}")
            return None
        return child

    def _leaf(self, raw: _Raw, path: bytes) -> Inode:
        if stat.S_ISLNK(raw.mode):
            if not 0 < raw.size <= MAX_PATH:
                raise _bad(f"a symlink of {raw.size} bytes", path)
            if raw.size < 60 and not raw.flags & _FLAG_EXTENTS:
                target = raw.block[: raw.size]
            else:
                target = b"".join(
                    self._read(block * self._block, count * self._block)
                    for _, count, block in self._runs(raw, path, at_most=-(-raw.size // self._block))
                )[: raw.size]
            if len(target) != raw.size or b"\0" in target:
                raise _bad("a broken symlink", path)
            return Inode(kind=SYMLINK, mode=0o777, mtime=raw.mtime, target=target)
        if raw.size > self._content_left:
            raise _bad("more in its files than the whole file system has room for, up to", path)
        self._content_left -= raw.size
        pieces: list[tuple[int, int, int]] = []
        for first, count, block in self._runs(raw, path, at_most=-(-raw.size // self._block)):
            start = first * self._block
            length = min(count * self._block, raw.size - start)
            if block * self._block + length > self._length:
                raise _bad("a file that lies outside of the file system", path)
            place = block * self._block
            if pieces and pieces[-1][0] + pieces[-1][1] == start and pieces[-1][1] + pieces[-1][2] == place:
                start, place, length = pieces[-1][0], pieces[-1][2], pieces.pop()[1] + length
            else:
                self._pieces_left -= 1
                if self._pieces_left < 0:
                    raise _spent(f"more than {MAX_ENTRIES} pieces of files, up to", path)
            pieces.append((start, length, place))
        return Inode(
            kind=FILE,
            mode=raw.mode & 0o7777,
            mtime=raw.mtime,
            size=raw.size,
            source=self._descriptor,
            pieces=tuple(pieces),
        )

    def _names(self, number: int, raw: _Raw, path: bytes) -> list[tuple[bytes, int]]:
        """A folder's entries but for "." and "..". Its index, where it has one, looks like empty ones."""
        if not stat.S_ISDIR(raw.mode):
            raise _bad(f"no folder at inode {number}", path)
        found: dict[bytes, int] = {}
        try:
            for _, count, block in self._runs(raw, path, at_most=-(-raw.size // self._block)):
                for at in range(block, block + count):
                    self._use_block(path)
                    self._block_of_names(at, path, found=found)
        except ImageError as error:
            self._harm(error, path)
        return list(found.items())

    def _block_of_names(self, at: int, path: bytes, *, found: dict[bytes, int]) -> None:
        try:
            for name, child in self._entries(self._read(at * self._block, self._block), path):
                if name in (b".", b".."):
                    continue
                if not name or b"/" in name or b"\0" in name or name in found:
                    raise _bad("a name that no file system has, or has once", path + b"/" + name)
                self._entries_left -= 1
                if self._entries_left < 0:
                    raise _spent(f"more than {MAX_ENTRIES} entries, up to", path)
                found[name] = child
        except ImageError as error:
            self._harm(error, path)

    def _entries(self, block: bytes, path: bytes) -> Iterator[tuple[bytes, int]]:
        at = 0
        while at < len(block):
            if at + 8 > len(block):
                raise _bad("a broken folder", path)
            child, length, size = _ENTRY.unpack_from(block, at)
            if length < 8 or length % 4 or at + length > len(block) or (child and 8 + size > length):
                raise _bad("a broken folder", path)
            if child:
                yield block[at + 8 : at + 8 + size], child
            at += length

    def _inode(self, number: int) -> _Raw:
        if not 0 < number <= self._inodes:
            raise invalid(f"it has an entry of inode {number}, which there is not")
        group, index = divmod(number - 1, self._per_group)
        place = (self._first_block + 1) * self._block + group * self._descriptor_size
        described = self._read(place, self._descriptor_size)
        table: int = struct.unpack_from("<I", described, 8)[0]
        if self._wide and self._descriptor_size >= 64:
            table |= struct.unpack_from("<I", described, 0x28)[0] << 32
        raw = self._read(table * self._block + index * self._inode_size, self._inode_size)
        mode, low, mtime = struct.unpack_from("<H2xI8xi", raw)
        flags, high = struct.unpack_from("<I", raw, 0x20)[0], struct.unpack_from("<I", raw, 0x6C)[0]
        if len(raw) >= 0x8C and struct.unpack_from("<H", raw, 0x80)[0] >= 12:
            mtime += (struct.unpack_from("<I", raw, 0x88)[0] & 3) << 32
        return _Raw(mode=mode, size=low | high << 32, mtime=mtime, flags=flags, block=raw[0x28:0x64])

    def _runs(self, raw: _Raw, path: bytes, *, at_most: int) -> Iterator[Run]:
        """Where a file lies, its blocks in order, holes left out; nothing beyond its first at_most blocks."""
        if raw.flags & (_FLAG_INLINE | _FLAG_ENCRYPTED | _FLAG_COMPRESSED):
            raise _bad("an inline, encrypted or compressed file", path)
        found = self._extents(raw.block, path) if raw.flags & _FLAG_EXTENTS else self._mapped(raw.block, path)
        next_block = 0
        for first, count, block in found:
            if first < next_block or not count:
                raise _bad("a file with its pieces out of order", path)
            next_block = first + count
            if first >= at_most:
                return
            if block:
                yield first, min(count, at_most - first), block

    def _extents(self, node: bytes, path: bytes, above: int = 6) -> Iterator[Run]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth >= above or 12 + 12 * entries > len(node):
            raise _bad("a broken tree of extents", path)
        for at in range(12, 12 + 12 * entries, 12):
            if depth:
                _, low, high = _EXTENT_INDEX.unpack_from(node, at)
                self._use_block(path)
                child = self._read((low | high << 32) * self._block, self._block)
                yield from self._extents(child, path, depth)
            else:
                first, count, high, low = _EXTENT.unpack_from(node, at)
                if count > _UNWRITTEN:
                    yield first, count - _UNWRITTEN, 0
                else:
                    yield first, count, low | high << 32

    def _mapped(self, block: bytes, path: bytes) -> Iterator[Run]:
        """ext2's map: twelve blocks, then blocks of blocks, of one to three levels. A hole is passed over."""
        pointers = struct.unpack("<15I", block)
        each = self._block // 4
        for at, place in enumerate(pointers[:12]):
            yield at, 1, place
        first = 12
        for level in (1, 2, 3):
            if pointers[11 + level]:
                yield from self._indirect(pointers[11 + level], level, first, path=path)
            first += each**level

    def _indirect(self, place: int, level: int, first: int, *, path: bytes) -> Iterator[Run]:
        self._use_block(path)
        each = self._block // 4
        for at, pointer in enumerate(
            struct.unpack(f"<{each}I", self._read(place * self._block, self._block))
        ):
            if pointer and level == 1:
                yield first + at, 1, pointer
            elif pointer:
                yield from self._indirect(pointer, level - 1, first + at * each ** (level - 1), path=path)

    def _use_block(self, path: bytes) -> None:
        self._blocks_left -= 1
        if self._blocks_left < 0:
            raise _spent("blocks of names and extents that are in many places, up to", path)

    def _read(self, position: int, count: int) -> bytes:
        if position + count > self._length:
            raise invalid("it points behind its own end, or is cut short")
        data = os.pread(self._descriptor, count, position)
        if len(data) != count:
            raise invalid("it has become shorter while it was read")
        return data


def _folder(raw: _Raw) -> Folder:
    folder = new_folder(0, raw.mode & 0o7777)
    folder.mtime = raw.mtime
    return folder


def _bad(what: str, path: bytes) -> ImageError:
    return invalid(f"it has {what}: {shown(path)}")


def _spent(what: str, path: bytes) -> _Spent:
    return _Spent(ErrorCode.IMAGE_INVALID, f"it has {what}: {shown(path)}")
