"""Binary packages: the ar container and the data archive in it. Hostile until parsed.

A .deb is `ar` of debian-binary, control.tar.*, data.tar.*. `extract` writes the wanted members below
a fresh folder of the caller's: regular files, folders, and symlinks to a bare name in the same
folder; nothing else, no owner, no setuid, no path outside. Its digest was checked before (archive.py).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from banger.image import compress
from banger.image.errors import invalid

_AR_MAGIC = b"!<arch>\n"
_MAX_MEMBERS = 16
MAX_UNPACKED = 4 << 30
MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class ArMember:
    """name as written, without its padding; offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


def ar_members(file: IO[bytes], *, length: int) -> Iterator[ArMember]:
    """The members of an ar archive of `length` bytes, in order; the caller may move file's position."""
    file.seek(0)
    if file.read(8) != _AR_MAGIC:
        raise invalid("not a Debian package: no ar archive")
    position = 8
    for _ in range(_MAX_MEMBERS):
        if position >= length:
            return
        file.seek(position)
        header = file.read(60)
        if len(header) != 60 or header[58:] != b"`\n":
            raise invalid("a Debian package with a broken ar header")
        size = header[48:58].strip()
        if not size.isdigit():
            raise invalid("a Debian package with a broken size in its ar header")
        try:
            name = header[:16].decode("ascii").rstrip().removesuffix("/")
        except UnicodeDecodeError as error:
            raise invalid("a Debian package with a strange member name") from error
        member = ArMember(name, position + 60, int(size))
        if member.offset + member.size > length:
            raise invalid(f"a Debian package that ends in the middle of {name!r}")
        yield member
        position = member.offset + member.size + (member.size & 1)
    raise invalid(f"a Debian package with more than {_MAX_MEMBERS} members")


def open_data(file: IO[bytes], *, length: int, limit: int = MAX_UNPACKED) -> Iterator[bytes]:
    """The unpacked data.tar of a .deb, as chunks."""
    members = list(ar_members(file, length=length))
    if not members or members[0].name != "debian-binary":
        raise invalid("not a Debian package: no debian-binary in front")
    file.seek(members[0].offset)
    if not file.read(members[0].size).startswith(b"2."):
        raise invalid("a Debian package of an unknown format version")
    data = [member for member in members if member.name.partition(".tar")[0] == "data"]
    if len(data) != 1:
        raise invalid("a Debian package must have one data.tar")
    kinds = {"data.tar": "none", "data.tar.gz": "gzip", "data.tar.xz": "xz", "data.tar.zst": "zstd"}
    kind = kinds.get(data[0].name)
    if kind is None:
        raise invalid(f"a Debian package with an unknown compression: {data[0].name!r}")
    file.seek(data[0].offset)

    def chunks() -> Iterator[bytes]:
        left = data[0].size
        while left > 0:
            chunk = file.read(min(left, compress.STEP))
            if not chunk:
                raise invalid("a Debian package that ends too early")
            left -= len(chunk)
            yield chunk

    return compress.decompressed(chunks(), kind, limit=limit, what="the package's data")


def safe_parts(name: str) -> tuple[str, ...]:
    """A tar member's path as clean components (leading "./" dropped); IMAGE_INVALID if it could escape."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name or len(name) > 4000:
        raise invalid(f"a package with a path that leaves it: {name[:200]!r}")
    return parts


def extract(deb: Path, target: Path, wanted: Callable[[str], str | None]) -> list[str]:
    """Write the wanted members of a .deb below `target` (a folder that only we write to). Blocking.

    wanted: maps a member's clean path ("usr/bin/x") to the path it gets below target, or None.
    Returns the paths written, in the archive's order.
    """
    written: list[str] = []
    length = deb.stat().st_size
    with deb.open("rb") as file:
        stream = compress.ChunkReader(open_data(file, length=length))
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for count, member in enumerate(archive):
                    if count > MAX_FILES:
                        raise invalid(f"a package with more than {MAX_FILES} files")
                    parts = safe_parts(member.name)
                    place = wanted("/".join(parts)) if parts else None
                    if place is None or member.isdir():
                        continue
                    path = target.joinpath(*safe_parts(place))
                    _make_parents(target, path)
                    if member.isreg():
                        _write(archive, member, path)
                    elif member.issym():
                        _link(member, path)
                    else:
                        raise invalid(f"a package whose {member.name!r} is no plain file")
                    written.append(place)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: tarfile's numbers
            raise invalid("a package with a broken data archive", details=str(error)) from error
    return written


def _make_parents(target: Path, path: Path) -> None:
    """Every parent below target is a real folder, not a symlink that an earlier member made."""
    folder = target
    for part in path.parent.relative_to(target).parts:
        folder = folder / part
        try:
            folder.mkdir(mode=0o755)
        except FileExistsError:
            if folder.is_symlink() or not folder.is_dir():
                raise invalid(
                    f"a package that puts files below {folder.name!r}, which is no folder"
                ) from None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None
    mode = 0o755 if member.mode & 0o111 else 0o644
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise invalid(f"a package that has {member.name!r} twice") from None
    with os.fdopen(descriptor, "wb") as out:
        left = member.size
        while left > 0:
            chunk = source.read(min(left, compress.STEP))
            if not chunk:
                raise invalid(f"a package that ends in the middle of {member.name!r}")
            out.write(chunk)
            left -= len(chunk)


def _link(member: tarfile.TarInfo, path: Path) -> None:
    if "/" in member.linkname or member.linkname in ("", ".", ".."):
        raise invalid(f"a package whose link {member.name!r} points elsewhere: {member.linkname[:100]!r}")
    try:
        path.symlink_to(member.linkname)
    except FileExistsError:
        raise invalid(f"a package that has {member.name!r} twice") from None
