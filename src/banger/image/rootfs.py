"""From a tree's tar to what mke2fs takes: one pass over the stream.

Drops and adds what the recipe says, splits /root off as the work seed, notes the extended attributes
that mke2fs would lose, repeats a hard link's target's owner, mode and time on the link (mke2fs applies
a link entry's own to the file), and adds up the size. No path of the tar is ever used on the host.
The input is hostile until parsed. Blocking; called in a thread.
"""

from __future__ import annotations

import base64
import binascii
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from banger.image.errors import invalid
from banger.system.ext4 import XAttr

MAX_ENTRIES = 2_000_000
MAX_CONTENT = 64 << 30
MAX_XATTR = 64 << 10
BLOCK = 4096
_SCHILY = "SCHILY.xattr."
_LIBARCHIVE = "LIBARCHIVE.xattr."
_CARRIED = "security.capability"  # mke2fs brings this one itself
WORK_ROOT = "root"


@dataclass(frozen=True, slots=True)
class TreeFile:
    """An entry to add, root:root, in place of one of the same path. path: clean ("etc/fstab").

    A symlink where `target` is given, else a file with `content`.
    """

    path: str
    content: bytes = b""
    mode: int = 0o644
    target: str = ""


@dataclass(slots=True)
class Rewritten:
    """content_bytes: what the entries need on an ext4, inodes included, without the journal."""

    content_bytes: int = 0
    entries: int = 0
    xattrs: list[XAttr] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Meta:
    mode: int
    uid: int
    gid: int
    mtime: float


def rewrite(
    source: IO[bytes],
    target: Path,
    seed: Path,
    *,
    add: Sequence[TreeFile] = (),
    drop: Callable[[str], bool] = lambda path: False,
    written: Callable[[int], None] = lambda count: None,
) -> Rewritten:
    """Read a tar stream from source; write the root's tar to `target` and /root's to `seed`.

    drop: says which clean paths are left out. written: hears the bytes so far, about each MiB.
    """
    result = Rewritten()
    files: dict[str, _Meta] = {}
    folders: set[str] = set()
    replaced = {entry.path for entry in add}
    told = 0
    try:
        with (
            tarfile.open(fileobj=source, mode="r|") as tree,
            tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out,
            tarfile.open(seed, "w", format=tarfile.PAX_FORMAT) as work,
        ):
            for member in tree:
                result.entries += 1
                if result.entries > MAX_ENTRIES:
                    raise invalid(f"a root file system with more than {MAX_ENTRIES} entries")
                path = clean_path(member.name)
                if path in replaced or (path and drop(path)):
                    continue
                content = tree.extractfile(member) if member.isreg() else None
                xattrs = read_xattrs(member, path)
                _tidy(member, path, files)
                if path.startswith(f"{WORK_ROOT}/"):
                    # the work disk is mounted there: its content belongs to the seed alone
                    member.name = "./" + path.removeprefix(f"{WORK_ROOT}/")
                    if member.islnk():
                        member.linkname = "./" + member.linkname.removeprefix(f"./{WORK_ROOT}/")
                    work.addfile(member, content)
                    continue
                result.xattrs += xattrs
                result.content_bytes += _on_disk(member)
                if result.content_bytes > MAX_CONTENT:
                    raise invalid(f"a root file system of more than {MAX_CONTENT >> 30} GiB")
                if member.isdir():
                    folders.add(path)
                out.addfile(member, content)
                if result.content_bytes - told >= 1 << 20:
                    told = result.content_bytes
                    written(told)
            for entry in add:
                _add_parents(out, entry.path, folders, result)
                _add(out, entry, result)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: tarfile's numbers
        raise invalid("the root file system's archive is broken", details=str(error)) from error
    return result


def clean_path(name: str) -> str:
    """A member's path without leading "./" or "/"; "" is the root. IMAGE_INVALID if it could escape."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        ".." in parts
        or "\0" in name
        or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts)
    ):
        raise invalid(f"a root file system with a path that no file system has: {name[:200]!r}")
    return "/".join(parts)


def read_xattrs(member: tarfile.TarInfo, path: str) -> list[XAttr]:
    """A member's extended attributes, but for the one that mke2fs carries over itself."""
    found: dict[str, bytes] = {}
    for key, value in member.pax_headers.items():
        if key.startswith(_LIBARCHIVE):
            try:
                content = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
            except (binascii.Error, ValueError) as error:
                raise invalid(f"a broken extended attribute on {path!r}") from error
            found.setdefault(unquote(key.removeprefix(_LIBARCHIVE)), content)
        elif key.startswith(_SCHILY):
            found[key.removeprefix(_SCHILY)] = value.encode("utf-8", "surrogateescape")
    for name, content in found.items():
        if len(content) > MAX_XATTR or not 0 < len(name) < 256:
            raise invalid(f"an extended attribute of {path!r} that no file system takes")
    return [XAttr(f"/{path}", name, content) for name, content in found.items() if name != _CARRIED]


def _tidy(member: tarfile.TarInfo, path: str, files: dict[str, _Meta]) -> None:
    member.name = f"./{path}" if path else "."
    # names are the other system's; numbers count. mke2fs keeps whole seconds
    member.uname = member.gname = ""
    member.mtime = int(member.mtime)
    member.pax_headers = {
        key: value for key, value in member.pax_headers.items() if key == f"{_SCHILY}{_CARRIED}"
    }
    if member.islnk():
        wanted = clean_path(member.linkname)
        meta = files.get(wanted)
        if meta is None:
            raise invalid(f"a hard link {path!r} to {wanted!r}, which is not there before it")
        if path.startswith(f"{WORK_ROOT}/") != wanted.startswith(f"{WORK_ROOT}/"):
            raise invalid(f"a hard link {path!r} between the root and its work disk")
        member.linkname = f"./{wanted}"
        member.mode, member.uid, member.gid, member.mtime = meta.mode, meta.uid, meta.gid, meta.mtime
        files[path] = meta
    elif (
        member.isdir()
        or member.isreg()
        or member.issym()
        or member.ischr()
        or member.isblk()
        or member.isfifo()
    ):
        if member.isreg():
            files[path] = _Meta(member.mode, member.uid, member.gid, member.mtime)
    else:
        raise invalid(f"a root file system with an entry of unknown type: {path!r}")


def _on_disk(member: tarfile.TarInfo) -> int:
    if member.islnk():
        return 0
    blocks = (member.size + BLOCK - 1) // BLOCK if member.isreg() else int(member.isdir())
    return blocks * BLOCK + 256


def _add_parents(out: tarfile.TarFile, path: str, folders: set[str], result: Rewritten) -> None:
    parts = path.split("/")[:-1]
    for end in range(1, len(parts) + 1):
        parent = "/".join(parts[:end])
        if parent in folders:
            continue
        # lib, bin and sbin of a merged /usr are symlinks there; recipes name the real place
        folders.add(parent)
        info = tarfile.TarInfo(f"./{parent}")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        out.addfile(info)
        result.content_bytes += _on_disk(info)


def _add(out: tarfile.TarFile, entry: TreeFile, result: Rewritten) -> None:
    info = tarfile.TarInfo(f"./{entry.path}")
    info.mode = entry.mode
    if entry.target:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
        out.addfile(info)
    else:
        info.size = len(entry.content)
        out.addfile(info, io.BytesIO(entry.content))
    result.content_bytes += _on_disk(info)
