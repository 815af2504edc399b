"""The headers of a stranger's tar: ustar, GNU and pax, with sparse files; contents are only pointed at.

A reader of our own, because tarfile takes three times as long for a header, carries names as text and reads
contents that nobody asked for. It reads tars as Go's archive/tar does, with which images are made and
unpacked elsewhere: what follows the end is ignored, a global pax header says nothing, entries without
content have none whatever their size says. Input is hostile: every length is bounded, every number checked.
Raises BadTar, to which the caller adds whose tar it is. Reads layers (image/) and what comes out of guests
(workspace/). Blocking; holds one window of the file at a time.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Bytes of one pax header or GNU long name, as Go has it."""
MAX_SIZE = 1 << 50
_WINDOW = 256 << 10
_ZEROS = bytes(BLOCK)
_FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s6s2x64x8s8s155s12s")

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, FOLDER, FIFO}
_FILES = {FILE, b"\0", b"7", b"S"}
_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."

Pieces = tuple[tuple[int, int, int], ...]
"""Of a sparse file: (where in the file, how many bytes, where in the archive); zeros between them."""


class BadTar(Exception):
    """What is wrong; entry: the raw name of the entry, b"" where none is known; layer: its number, or -1."""

    def __init__(self, why: str, entry: bytes = b"", *, layer: int = -1) -> None:
        super().__init__(why)
        self.why = why
        self.entry = entry
        self.layer = layer


@dataclass(slots=True)
class Header:
    """An entry as its tar has it. name and target: raw. mtime: seconds. size: bytes of a file's content.

    position: where the content begins in the archive's file. pieces: given where the file is sparse.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    position: int = 0
    pieces: Pieces | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class _Window:
    """Random access to a stretch of a file, in large steps."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self.end = end
        self._held = b""
        self._at = start

    def take(self, position: int, count: int) -> bytes:
        """`count` bytes, fewer where the stretch ends."""
        offset = position - self._at
        if offset < 0 or offset + count > len(self._held):
            wanted = min(max(_WINDOW, count), self.end - position)
            self._held = os.pread(self._descriptor, wanted, position) if wanted > 0 else b""
            self._at = position
            offset = 0
        return self._held[offset : offset + count]


@dataclass(slots=True)
class _Extensions:
    """What the headers before an entry's own say of it."""

    pax: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[int] = field(default_factory=list)  # pax's 0.0: offset, length, offset, length …
    name: bytes = b""
    target: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.pax or self.name or self.target or self.sparse)


def read_headers(descriptor: int, start: int, end: int) -> Iterator[Header]:
    """The entries of the tar in a file from `start` to before `end`."""
    window = _Window(descriptor, start, end)
    position = start
    extensions = _Extensions()
    while True:
        block = window.take(position, BLOCK)
        if not block or block == _ZEROS:
            if extensions:
                raise BadTar("the archive ends after an extended header")
            return
        if len(block) < BLOCK:
            raise BadTar("the archive ends in the middle of a header")
        kind = block[156:157]
        if kind in b"xgLK":
            body, position = _extension(window, block, position)
            if kind == b"x":
                extensions.pax, extensions.sparse = _pax(body)
            elif kind == b"g":
                _pax(body)
            elif kind == b"L":
                extensions.name = body.partition(b"\0")[0]
            else:
                extensions.target = body.partition(b"\0")[0]
            continue
        header, position = _entry(window, block, position, extensions)
        extensions = _Extensions()
        yield header


def _extension(window: _Window, block: bytes, position: int) -> tuple[bytes, int]:
    if not _checksum_fits(block):
        raise BadTar("a header with a wrong checksum")
    size = _number(block[124:136], b"")
    if size > MAX_EXTENSION:
        raise BadTar(f"an extended header of {size} bytes")
    body = window.take(position + BLOCK, size)
    if len(body) < size:
        raise BadTar("the archive ends in the middle of an extended header")
    return body, position + BLOCK + _padded(size)


def _entry(window: _Window, block: bytes, position: int, extensions: _Extensions) -> tuple[Header, int]:
    if not _checksum_fits(block):
        raise BadTar("a header with a wrong checksum")
    (name, mode, uid, gid, size_, mtime, _sum, kind, target, magic, major, minor, prefix, last) = (
        _FIELDS.unpack(block)
    )
    name = name.partition(b"\0")[0]
    if magic == b"ustar\0":
        if last[8:] == b"tar\0":
            prefix = prefix[:131]
        prefix = prefix.partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    pax = extensions.pax
    name = pax.get(b"path") or extensions.name or name
    target = pax.get(b"linkpath") or extensions.target or target.partition(b"\0")[0]
    size = _decimal(pax, b"size", name) if pax.get(b"size") else _number(size_, name)
    header = Header(
        name=name,
        kind=kind,
        mode=_number(mode, name) & 0o7777,
        uid=_decimal(pax, b"uid", name) if pax.get(b"uid") else _number(uid, name),
        gid=_decimal(pax, b"gid", name) if pax.get(b"gid") else _number(gid, name),
        mtime=_seconds(pax[b"mtime"], name) if pax.get(b"mtime") else _number(mtime, name, signed=True),
        target=target,
    )
    position += BLOCK
    if kind == b"\0" and name.endswith(b"/"):
        header.kind = FOLDER  # before ustar there was no other way to say so
    elif kind in _FILES:
        header.kind = FILE
        header.position, header.size = position, size
        if kind == b"S":
            position = _old_sparse(window, block, header, size)
        elif extensions.sparse or b"GNU.sparse.major" in pax or b"GNU.sparse.map" in pax:
            _pax_sparse(window, header, extensions)
        if position + size > window.end:
            raise BadTar("the archive ends in the middle of its content", name)
        position += _padded(size)
    elif kind not in _KINDS:
        raise BadTar(f"an entry of unknown type {kind!r}", name)
    elif kind in (CHAR, BLOCK_DEVICE):
        header.device = (_number(major, name), _number(minor, name))
    if pax:
        header.xattrs = _xattrs(pax, name)
    return header, position


def _checksum_fits(block: bytes) -> bool:
    """Adler-32's low half is one more than the sum of the bytes, where that is below 65,521."""
    adler = zlib.adler32
    halves = (adler(block[:148]), adler(block[156:334]), adler(block[334:]))
    total = sum(half & 0xFFFF for half in halves) - 3 + 8 * 32
    try:
        said = int(block[148:156].partition(b"\0")[0].strip() or b"x", 8)
    except ValueError:
        return False
    if said == total:
        return True
    # some old programs added the bytes as signed ones
    return said == total - 256 * sum(1 for byte in block[:148] + block[156:] if byte > 127)


def _padded(size: int) -> int:
    return (size + BLOCK - 1) & -BLOCK


def _number(raw: bytes, entry: bytes, *, signed: bool = False) -> int:
    """A numeric field: octal, or GNU's base 256."""
    if raw and raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ~(0x80 << (8 * len(raw) - 8))
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
    else:
        text = raw.partition(b"\0")[0].strip()
        if not text:
            return 0
        try:
            value = int(text, 8) if text.isdigit() else -1
        except ValueError:
            value = -1
        if value < 0:
            raise BadTar("a header with a number that is none", entry)
    if (value < 0 and not signed) or abs(value) > MAX_SIZE:
        raise BadTar("a header with a number that cannot be", entry)
    return value


def _decimal(pax: dict[bytes, bytes], key: bytes, entry: bytes) -> int:
    text = pax.get(key, b"")
    if not text.isdigit() or len(text) > 16 or int(text) > MAX_SIZE:
        raise BadTar(f"an extended header with a number that cannot be ({key.decode()})", entry)
    return int(text)


def _seconds(text: bytes, entry: bytes) -> int:
    whole, _, part = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 15 or (part and not part.isdigit()):
        raise BadTar("an extended header with a time that cannot be", entry)
    # the second that has begun, as file systems count, also before 1970
    return -int(whole) - (1 if part.strip(b"0") else 0) if text.startswith(b"-") else int(whole)


def _pax(body: bytes) -> tuple[dict[bytes, bytes], list[int]]:
    """Records `length key=value\\n`; the last one of a key counts, an empty value takes it back."""
    found: dict[bytes, bytes] = {}
    sparse: list[int] = []
    position = 0
    while position < len(body):
        blank = body.find(b" ", position, position + 8)
        digits = body[position:blank] if blank > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        if not blank + 2 < end <= len(body) or body[end - 1 : end] != b"\n":
            raise BadTar("a broken extended header")
        key, equals, value = body[blank + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise BadTar("a broken extended header")
        if key in (b"path", b"linkpath", b"GNU.sparse.name") and b"\0" in value:
            raise BadTar("a name with a zero byte in it", value)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(sparse) % 2 == 0):
                raise BadTar("a broken map of a sparse file")
            sparse.append(_decimal({key: value}, key, b""))
        found[key] = value
        position = end
    return found, sparse


def _xattrs(pax: dict[bytes, bytes], entry: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for key, value in pax.items():
        if key.startswith(_SCHILY):
            found[key[len(_SCHILY) :]] = value
        elif key.startswith(_LIBARCHIVE):
            try:
                decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadTar("a broken extended attribute", entry) from error
            name = unquote_to_bytes(key[len(_LIBARCHIVE) :])
            if _SCHILY + name not in pax:
                found[name] = decoded
    return found


def _old_sparse(window: _Window, block: bytes, header: Header, stored: int) -> int:
    """GNU's type S: the map in the header and in blocks behind it. Returns where the content begins."""
    spans: list[int] = []

    def read(raw: bytes) -> None:
        for at in range(0, len(raw), 12):
            if not raw[at : at + 12].strip(b"\0 "):
                break
            spans.append(_number(raw[at : at + 12], header.name))

    read(block[386:482])
    more = block[482]
    while more:
        extension = window.take(header.position, BLOCK)
        if len(extension) < BLOCK or len(spans) > MAX_EXTENSION // 12:
            raise BadTar("a broken map of a sparse file", header.name)
        read(extension[:504])
        more = extension[504]
        header.position += BLOCK
    _set_pieces(header, spans, _number(block[483:495], header.name), stored=stored)
    return header.position


def _pax_sparse(window: _Window, header: Header, extensions: _Extensions) -> None:
    """GNU's sparse files in pax: 0.0 and 0.1 have the map in the header, 1.0 before the content."""
    pax, spans, stored = extensions.pax, extensions.sparse, header.size
    header.name = pax.get(b"GNU.sparse.name") or header.name
    if b"GNU.sparse.major" in pax:
        if (pax[b"GNU.sparse.major"], pax.get(b"GNU.sparse.minor")) != (b"1", b"0"):
            raise BadTar("a sparse file of an unknown format", header.name)
        spans, length = _map_before(window, header)
        header.position += length
        stored -= length
    elif b"GNU.sparse.map" in pax:
        words = pax[b"GNU.sparse.map"].split(b",")
        spans = [_decimal({b"GNU.sparse.map": word}, b"GNU.sparse.map", header.name) for word in words]
    key = b"GNU.sparse.realsize" if b"GNU.sparse.realsize" in pax else b"GNU.sparse.size"
    _set_pieces(header, spans, _decimal(pax, key, header.name), stored=stored)


def _map_before(window: _Window, header: Header) -> tuple[list[int], int]:
    """1.0's map: decimal lines, the first says how many pairs follow; padded to whole blocks."""
    raw = window.take(header.position, min(header.size, MAX_EXTENSION))
    first, newline, _ = raw[:32].partition(b"\n")
    count = int(first) if newline and first.isdigit() and len(first) < 8 else -1
    lines = raw.split(b"\n", 2 * count + 1) if 0 <= 2 * count < len(raw) else []
    if not lines or len(lines) < 2 * count + 2:
        raise BadTar("a broken map of a sparse file", header.name)
    used = lines[: 2 * count + 1]
    spans = [_decimal({b"map": line}, b"map", header.name) for line in used[1:]]
    return spans, _padded(sum(len(line) + 1 for line in used))


def _set_pieces(header: Header, spans: list[int], real: int, *, stored: int) -> None:
    pieces: list[tuple[int, int, int]] = []
    at, source = 0, header.position
    if len(spans) % 2:
        raise BadTar("a broken map of a sparse file", header.name)
    for offset, length in zip(spans[::2], spans[1::2], strict=True):
        if offset < at or offset + length > real:
            raise BadTar("a broken map of a sparse file", header.name)
        if length:
            pieces.append((offset, length, source))
        at, source = offset + length, source + length
    if source - header.position != stored or stored < 0:
        raise BadTar("a map of a sparse file that does not fit its content", header.name)
    header.pieces, header.size = tuple(pieces), real
