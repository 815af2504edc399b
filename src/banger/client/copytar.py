"""Tar headers as both ends of a copy write them: ustar, with pax records where that has no room.

Pure bytes, no I/O. Sparse files are in pax format 1.0. The reader takes what the agent writes and nothing
more: an archive of a guest is hostile, and NotTar is all that malformed bytes can cause. Checksums are made,
not checked: they protect nothing here.
Fractions of seconds stand in the header's padding (`.123456789`), which every tar ignores.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 512
MAX_PATH = 32767
MAX_RECORDS = 131072
MAX_EXTENTS = 1 << 19
NANOSECONDS = 1_000_000_000

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO = (b"%d" % kind for kind in range(7))
EXTENDED = b"x"
END = bytes(2 * BLOCK)
_DEVICES = frozenset({CHARACTER, BLOCK_DEVICE})

_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777
_HEAD = struct.Struct("100s8s8s8s12s12s8xc100s6s2x32x32x8s8s155x12s")
_MAKE = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155x12s")
_SUM_AT = 148
_MAX_SIZE = (1 << 63) - 1


class NotTar(Exception):
    """Bytes that are no archive of the agent's."""


class Head(NamedTuple):
    """One header. size: bytes that follow in the archive. extra: pax records that stood before it."""

    path: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    major: int
    minor: int


def read_head(buffer: bytearray, at: int) -> Head:
    """The header at `at`. An archive's end (a block of zeros) has kind NUL."""
    name, mode, uid, gid, size, mtime, kind, link, magic, major, minor, padding = _HEAD.unpack_from(
        buffer, at
    )
    if magic != b"ustar\0":
        if kind == b"\0" and not name.strip(b"\0"):
            return Head(b"", b"\0", 0, 0, 0, 0, 0, b"", 0, 0)
        raise NotTar("a header without its mark")
    try:
        length = int(size[:11], 8)
        nanoseconds = int(mtime[:11], 8) * NANOSECONDS
        if padding[0] == 0x2E:
            fraction = int(padding[1:10])
            if fraction < 0:
                raise NotTar("a malformed time")
            nanoseconds += fraction
        if length < 0:
            raise NotTar("a malformed size")
        return Head(
            name.rstrip(b"\0"),
            kind,
            int(mode[:7], 8) & 0o7777,
            int(uid[:7], 8),
            int(gid[:7], 8),
            length,
            nanoseconds,
            link.rstrip(b"\0"),
            int(major[:7], 8) if kind in _DEVICES else 0,
            int(minor[:7], 8) if kind in _DEVICES else 0,
        )
    except ValueError:
        raise NotTar("a malformed number") from None


def read_records(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise NotTar("a malformed extended header")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n" or end <= space:
            raise NotTar("a malformed extended header")
        records[key] = value
        at = end
    return records


def with_records(head: Head, records: dict[bytes, bytes]) -> Head:
    """The header with what its extended header says."""
    try:
        return head._replace(
            path=records.get(b"path", head.path),
            link=records.get(b"linkpath", head.link),
            size=_number(records[b"size"]) if b"size" in records else head.size,
            uid=_number(records[b"uid"]) if b"uid" in records else head.uid,
            gid=_number(records[b"gid"]) if b"gid" in records else head.gid,
            mtime_ns=_time(records[b"mtime"]) if b"mtime" in records else head.mtime_ns,
        )
    except ValueError:
        raise NotTar("a malformed extended header") from None


def sparse_size(records: dict[bytes, bytes]) -> int | None:
    """The real size where the records say that the file is sparse."""
    if records.get(b"GNU.sparse.major") != b"1":
        return None
    try:
        return _number(records[b"GNU.sparse.realsize"])
    except (KeyError, ValueError):
        raise NotTar("a sparse file without a size") from None


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError(text)
    number = int(text)
    if number > _MAX_SIZE:
        raise ValueError(text)
    return number


def _time(text: bytes) -> int:
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if len(fraction) > 9:
        fraction = fraction[:9]
    return sign * (_number(whole) * NANOSECONDS + (_number(fraction.ljust(9, b"0")) if fraction else 0))


def make_head(head: Head, *, sparse_realsize: int | None = None) -> bytes:
    """The header, with an extended one before it where it is needed. ValueError: a name that is too long.

    sparse_realsize: the file's size; head.size is then that of map and data.
    """
    path, link, size = head.path, head.link, head.size
    seconds, fraction = divmod(head.mtime_ns, NANOSECONDS)
    before = b""
    if (
        len(path) > 100
        or len(link) > 100
        or size > _OCTAL_11
        or head.uid > _OCTAL_7
        or head.gid > _OCTAL_7
        or not 0 <= seconds <= _OCTAL_11
        or sparse_realsize is not None
    ):
        before = _extended(head, sparse_realsize)
        size = 0 if size > _OCTAL_11 else size
        seconds = seconds if 0 <= seconds <= _OCTAL_11 else 0
    block = _MAKE.pack(
        path,
        b"%07o" % head.mode,
        b"%07o" % (head.uid if head.uid <= _OCTAL_7 else 0),
        b"%07o" % (head.gid if head.gid <= _OCTAL_7 else 0),
        b"%011o" % size,
        b"%011o" % seconds,
        b"        ",
        head.kind,
        link,
        b"ustar\x0000",
        b"%07o" % head.major,
        b"%07o" % head.minor,
        b".%09d" % fraction if fraction else b"",
    )
    return b"%b%b%06o\0 %b" % (before, block[:_SUM_AT], sum(block), block[_SUM_AT + 8 :])


def _extended(head: Head, sparse_realsize: int | None) -> bytes:
    seconds = head.mtime_ns // NANOSECONDS
    records = b""
    if sparse_realsize is not None:
        records += _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")
        records += _record(b"GNU.sparse.name", head.path)
        records += _record(b"GNU.sparse.realsize", b"%d" % sparse_realsize)
    if len(head.path) > 100:
        records += _record(b"path", head.path)
    if len(head.link) > 100:
        records += _record(b"linkpath", head.link)
    for key, number, most in (
        (b"size", head.size, _OCTAL_11),
        (b"uid", head.uid, _OCTAL_7),
        (b"gid", head.gid, _OCTAL_7),
    ):
        if number > most:
            records += _record(key, b"%d" % number)
    if not 0 <= seconds <= _OCTAL_11:
        sign, away = (b"-", -head.mtime_ns) if head.mtime_ns < 0 else (b"", head.mtime_ns)
        records += _record(b"mtime", b"%b%d.%09d" % (sign, away // NANOSECONDS, away % NANOSECONDS))
    if len(head.path) > MAX_PATH or len(head.link) > MAX_PATH or len(records) > MAX_RECORDS:
        raise ValueError("the name is too long")
    outer = Head(b"./PaxHeaders/x", EXTENDED, 0o644, 0, 0, len(records), 0, b"", 0, 0)
    return make_head(outer) + records + padding(len(records))


def _record(key: bytes, value: bytes) -> bytes:
    bare = len(key) + len(value) + 3
    total = bare + 1
    while bare + len(b"%d" % total) != total:
        total = bare + len(b"%d" % total)
    return b"%d %b=%b\n" % (total, key, value)


def padding(size: int) -> bytes:
    """What fills the last block up."""
    return bytes(-size % BLOCK)


def make_map(extents: Sequence[tuple[int, int]]) -> bytes:
    """What stands before the data of a sparse file: (offset, length) of its pieces."""
    text = b"".join(b"%d\n%d\n" % extent for extent in extents)
    text = b"%d\n%b" % (len(extents), text)
    return text + padding(len(text))
