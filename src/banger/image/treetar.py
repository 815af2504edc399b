"""A tree of layers as a tar that mke2fs -d takes, and what it will need on an ext4.

Folders before what is in them, the first name of an inode before its other names, which repeat owner, mode
and time (mke2fs applies a link entry's own to the file). Names are raw bytes: pax's hdrcharset=BINARY keeps
readers from converting them. Contents go from their file to the output inside the kernel where it can.
Blocking; the output is the caller's.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from banger.image.layertree import Folder, Inode, walk
from banger.system.ext4 import XAttr
from banger.system.tarheaders import BLOCK_DEVICE, CHAR, FILE, FOLDER, LINK, SYMLINK, BadTar

_BLOCK = 512
_RECORD = 10240
_FS_BLOCK = 4096
_INODE = 256
_BUFFER = 1 << 20
_SMALL = 128 << 10
"""Up to here a file's content is copied through the buffer: a system call less for each."""
_STEP = 8 << 20
_CARRIED = b"security.capability"  # mke2fs brings this one itself
_ZEROS = bytes(_BUFFER)


@dataclass(slots=True)
class Measure:
    """content_bytes: what the tree needs on an ext4, inodes included, without the journal.

    xattrs: those that mke2fs drops, to be set afterwards.
    """

    content_bytes: int = 0
    inodes: int = 0
    xattrs: list[XAttr] = field(default_factory=list)


def measure(top: Folder) -> Measure:
    """BadTar (with the path) for what cannot be written."""
    found = Measure()
    linked: set[int] = set()
    _measure_one(found, b"", top)
    for path, inode in walk(top):
        if inode.names > 1:
            if id(inode) in linked:
                continue
            linked.add(id(inode))
        _measure_one(found, path, inode)
    return found


def _measure_one(found: Measure, path: bytes, inode: Inode) -> None:
    found.inodes += 1
    size = _INODE
    if isinstance(inode, Folder):
        names = sum(12 + len(name) for name in inode.children)
        size += max(1, -(-names * 5 // (4 * _FS_BLOCK))) * _FS_BLOCK
    elif inode.kind == FILE:
        size += -(-inode.size // _FS_BLOCK) * _FS_BLOCK
    elif len(inode.target) > 59:
        size += _FS_BLOCK  # too long for the inode itself
    if inode.xattrs:
        size += _FS_BLOCK
        if any(character in path for character in b'\n\r"\\') and inode.xattrs.keys() != {_CARRIED}:
            raise BadTar(
                "attributes on a name that the file system tools cannot carry", path, layer=inode.layer
            )
        found.xattrs += [
            XAttr("/" + os.fsdecode(path), os.fsdecode(name), value)
            for name, value in inode.xattrs.items()
            if name != _CARRIED
        ]
    found.content_bytes += size


def write_tree(
    top: Folder,
    out: IO[bytes],
    *,
    heard: Callable[[int], None] = lambda count: None,
    holes: bool = False,
) -> int:
    """Write a folder's content, and the folder itself as ".", as a whole tar; returns its length.

    heard: told the bytes so far, after each large piece; what it raises ends the work. holes: `out` is an
    empty file, in which the holes of files may be holes.
    """
    writer = _Writer(out, heard, holes=holes)
    places: dict[int, bytes] = {}
    writer.entry(b".", top)
    for path, inode in walk(top):
        name = b"./" + path
        if inode.names > 1 and inode.kind != FOLDER:
            first = places.setdefault(id(inode), name)
            if first is not name:
                writer.add(_header(name, inode, LINK, target=first, xattrs=None))
                continue
        writer.entry(name, inode)
    return writer.end()


class _Writer:
    def __init__(self, out: IO[bytes], heard: Callable[[int], None], *, holes: bool) -> None:
        self._out = out
        self._holes = holes
        self._heard = heard
        self._buffer = bytearray()
        self._written = 0
        self._descriptor = _descriptor(out)

    def add(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def entry(self, name: bytes, inode: Inode) -> None:
        self.add(_header(name, inode, inode.kind, target=inode.target, xattrs=inode.xattrs))
        if inode.kind != FILE or not inode.size:
            return
        if inode.pieces is None:
            self._copy(inode.source, inode.position, inode.size)
        else:
            at = 0
            for offset, length, position in inode.pieces:
                self._zeros(offset - at)
                self._copy(inode.source, position, length)
                at = offset + length
            self._zeros(inode.size - at)
        self.add(bytes(-inode.size % _BLOCK))

    def end(self) -> int:
        length = self._written + len(self._buffer) + 2 * _BLOCK
        self.add(bytes(2 * _BLOCK + -length % _RECORD))
        self._flush()
        self._out.flush()
        return self._written

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[self._out.write(view) :]
        view.release()
        self._written += len(self._buffer)
        self._buffer = bytearray()
        self._heard(self._written)

    def _zeros(self, count: int) -> None:
        if self._holes and count > _BUFFER:
            self._flush()
            self._out.seek(count, os.SEEK_CUR)
            self._written += count
            return
        while count > 0:
            self.add(_ZEROS[: min(count, _BUFFER)])
            count -= _BUFFER

    def _copy(self, source: int, position: int, count: int) -> None:
        if count <= _SMALL:
            self.add(_read(source, position, count))
            return
        self._flush()
        if self._descriptor >= 0:
            self._out.flush()
        while count > 0:
            moved = self._move(source, position, min(count, _STEP))
            position, count = position + moved, count - moved
            self._written += moved
            self._heard(self._written)

    def _move(self, source: int, position: int, count: int) -> int:
        if self._descriptor >= 0:
            try:
                moved = os.sendfile(self._descriptor, source, position, count)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._descriptor = -1
            else:
                if not moved:
                    raise OSError(errno.EIO, "a layer's file has become shorter")
                return moved
        data = _read(source, position, min(count, _BUFFER))
        view = memoryview(data)
        while view:
            view = view[self._out.write(view) :]
        return len(data)


def _descriptor(out: IO[bytes]) -> int:
    try:
        return out.fileno()
    except (io.UnsupportedOperation, OSError):
        return -1


def _read(source: int, position: int, count: int) -> bytes:
    data = os.pread(source, count, position)
    if len(data) != count:
        raise OSError(errno.EIO, "a layer's file has become shorter")
    return data


def _header(
    name: bytes, inode: Inode, kind: bytes, *, target: bytes, xattrs: dict[bytes, bytes] | None
) -> bytes:
    if kind == FOLDER:
        name += b"/"
    size = inode.size if kind == FILE else 0
    before = b""
    if len(name) > 100 or len(target) > 100 or xattrs:
        records = [b"hdrcharset", b"BINARY"]
        if len(name) > 100:
            records += [b"path", name]
        if len(target) > 100:
            records += [b"linkpath", target]
        for key, value in (xattrs or {}).items():
            records += [b"SCHILY.xattr." + key, value]
        body = b"".join(map(_record, records[::2], records[1::2]))
        before = _block(b"./pax", b"x", size=len(body)) + body + bytes(-len(body) % _BLOCK)
    return before + _block(
        name[:100],
        kind,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=size,
        mtime=inode.mtime,
        target=target[:100] if kind in (LINK, SYMLINK) else b"",
        device=inode.device if kind in (CHAR, BLOCK_DEVICE) else (0, 0),
    )


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    total = length + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def _block(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    head = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(mtime, 12),
        )
    )
    tail = b"".join(
        (
            kind,
            target.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            _number(device[0], 8),
            _number(device[1], 8),
            bytes(167),
        )
    )
    return b"%s%06o\0 %s" % (head, sum(head) + sum(tail) + 8 * 32, tail)


def _number(value: int, width: int) -> bytes:
    """Octal where it fits, else base 256 as GNU's."""
    if 0 <= value < 1 << (3 * (width - 1)):
        return b"%0*o\0" % (width - 1, value)
    return (value + (1 << (8 * width - 1) if value >= 0 else 1 << (8 * width))).to_bytes(width, "big")
