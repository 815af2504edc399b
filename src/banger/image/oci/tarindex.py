"""The members of a tar file that holds an image: names and places, read without believing any of it.

Not for layers: only what `docker save`, skopeo and podman write as an image's own file is known, which is
files, folders and (docker's old form) links between layers. Names are keys to look up, never paths. Pure but
for reading the file; every header, name and count is bounded.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import IO

import msgspec

from banger.image.errors import invalid

BLOCK = 512
MAX_MEMBERS = 20_000
MAX_NAME = 4096
MAX_EXTENSION = 1 << 20
"""Bytes of one extended header."""
MAX_LINKS = 16

_FILES = frozenset({b"0", b"\0", b"7"})
_LINKS = frozenset({b"1", b"2"})
_FOLDER = b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """offset and size, in bytes: of its content in the tar file. link: the name that a link means, or ""."""

    offset: int
    size: int
    link: str = ""


class TarIndex:
    """The members by name; of several with a name the last counts, as with tar."""

    def __init__(self, file: IO[bytes], members: dict[str, Member], *, what: str) -> None:
        self._file = file
        self._members = members
        self._what = what

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def member(self, name: str) -> Member:
        """A file by name, through links; IMAGE_INVALID where there is none."""
        wanted = name
        for _ in range(MAX_LINKS):
            found = self._members.get(_normal(wanted))
            if found is None:
                raise invalid(f"{self._what} has no file {_shown(wanted)}")
            if not found.link:
                return found
            wanted = found.link
        raise invalid(f"{self._what} has links that lead in circles at {_shown(name)}")

    def read(self, name: str, *, limit: int) -> bytes:
        """The content of a small file."""
        found = self.member(name)
        if found.size > limit:
            raise invalid(f"{_shown(name)} in {self._what} is larger than {limit >> 10} KiB")
        return b"".join(self.chunks(found, step=limit))

    def chunks(self, member: Member, *, step: int = 1 << 20) -> Iterator[bytes]:
        """A file's content, in pieces."""
        position, left = member.offset, member.size
        while left:
            self._file.seek(position)
            piece = self._file.read(min(step, left))
            if not piece:
                raise invalid(f"{self._what} ends in the middle of a file")
            position, left = position + len(piece), left - len(piece)
            yield piece


def read_index(file: IO[bytes], *, what: str) -> TarIndex:
    """Walk over all headers of a seekable tar file. Blocking. what: its name, for errors."""
    end = file.seek(0, 2)
    position = 0
    members: dict[str, Member] = {}
    long_name = long_link = ""
    pax: dict[str, str] = {}
    count = 0
    while True:
        header = _read(file, position, BLOCK)
        if len(header) < BLOCK or header == b"\0" * BLOCK:
            break
        count += 1
        if count > MAX_MEMBERS:
            raise invalid(f"{what} has more than {MAX_MEMBERS} members")
        kind = header[156:157]
        _check_sum(header, what)
        size = _number(header[124:136], what)
        if kind not in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK) and "size" in pax:
            size = _decimal(pax["size"], what)
        if kind in _LINKS or kind == _FOLDER:
            size = 0
        start = position + BLOCK
        if size > end - start:
            raise invalid(f"{what} ends in the middle of a member")
        position = start + -(-size // BLOCK) * BLOCK
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            if size > MAX_EXTENSION:
                raise invalid(f"{what} has an extended header of {size} bytes")
            content = _read(file, start, size)
            if kind == _LONG_NAME:
                long_name = _text(content, what)
            elif kind == _LONG_LINK:
                long_link = _text(content, what)
            elif kind == _PAX:
                pax = _pax(content, what)
            continue
        name = pax.get("path") or long_name or _ustar_name(header, what)
        link = pax.get("linkpath") or long_link or _text(header[157:257], what)
        if any(key.startswith("GNU.sparse") for key in pax):
            raise invalid(f"{what} has a sparse member, {_shown(name)}")
        long_name = long_link = ""
        pax = {}
        if kind in _FILES:
            members[_normal(name)] = Member(offset=start, size=size)
        elif kind in _LINKS:
            # a hard link names a member, a symlink a place beside itself
            meant = link if kind == b"1" else posixpath.join(posixpath.dirname(name), link)
            members[_normal(name)] = Member(offset=start, size=0, link=_normal(meant))
        elif kind != _FOLDER:
            raise invalid(f"{what} has a member of kind {kind!r}, {_shown(name)}")
    if not count:
        raise invalid(f"{what} is no tar file")
    return TarIndex(file, members, what=what)


def _read(file: IO[bytes], position: int, size: int) -> bytes:
    file.seek(position)
    found = file.read(size)
    while len(found) < size and (more := file.read(size - len(found))):
        found += more
    return found


def _normal(name: str) -> str:
    """Only so that `./a` and `a` are the same key; what climbs out matches nothing that anyone asks for."""
    return posixpath.normpath(name) if name else ""


def _check_sum(header: bytes, what: str) -> None:
    said = _number(header[148:156], what)
    if sum(header[:148]) + 8 * 32 + sum(header[156:]) != said:
        raise invalid(f"{what} is no tar file, or a broken one")


def _number(field: bytes, what: str) -> int:
    """Octal, or base 256 where it is large."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.rstrip(b"\0 ").lstrip(b" ")
    if not text:
        return 0
    if not all(0x30 <= letter <= 0x37 for letter in text):
        raise invalid(f"{what} is no tar file, or a broken one")
    return int(text, 8)


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise invalid(f"{what} has a broken extended header")
    return int(text)


def _text(field: bytes, what: str) -> str:
    found = field.split(b"\0", 1)[0]
    if len(found) > MAX_NAME:
        raise invalid(f"{what} has a name of more than {MAX_NAME} bytes")
    return found.decode("utf-8", "surrogateescape")


def _ustar_name(header: bytes, what: str) -> str:
    name = _text(header[0:100], what)
    prefix = _text(header[345:500], what) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax(content: bytes, what: str) -> dict[str, str]:
    """`LENGTH key=value\\n` records."""
    found: dict[str, str] = {}
    position = 0
    while position < len(content):
        digits, blank, _ = content[position : position + 12].partition(b" ")
        if not blank or not digits.isdigit():
            raise invalid(f"{what} has a broken extended header")
        length = int(digits)
        record = content[position + len(digits) + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 1 or position + length > len(content) or not equals or value[-1:] != b"\n":
            raise invalid(f"{what} has a broken extended header")
        position += length
        text = _text(value[:-1], what) if key in (b"path", b"linkpath") else value[:64].decode("latin-1")
        found[key[:64].decode("latin-1")] = text.rstrip("\n")
    return found


def _shown(name: str) -> str:
    return ascii(name[:100])
