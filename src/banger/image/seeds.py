"""Work seeds and work disks: a fresh ext4 at its final size, filled from a tar by mke2fs alone.

A seed is a tar beside the image: its /root as a new work disk has it, root:root, with modes, symlinks and
hard links, and with banger's own files (the authorised key) in place of the image's. It is made once for
an image and a key, streamed, and replaced by one rename; its first entry, a pax comment, says what it was
made with (`Stamp`), so that another key, or another root file system of the user's, makes it anew. Never
mounted, no root needed. A crash leaves a `.tmp` beside seed or disk, which the next try overwrites.
"""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.ext4tree import Ext4
from banger.image.initramfs import GuestFile
from banger.image.layertree import Folder, Inode, LayerTree, TooLarge, new_folder, split, walk
from banger.image.rootfs import MAX_ENTRIES, WORK_ROOT, clean_path
from banger.image.staging import require_space
from banger.image.treetar import measure, write_tree
from banger.system import ext4
from banger.system.ext4 import E2fsprogs
from banger.system.tarheaders import FILE, FOLDER, LINK, SYMLINK, BadTar, Header, read_headers

LABEL = "banger-work"
FORM = 1
_MAX_INDEX = 1 << 30
_MAX_STAMP = 4096
_COMMENT = re.compile(rb"\d+ comment=(.*)\n")


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed was made with and what it holds. form: raised when banger's own files change.

    key: fingerprint of the authorised key. source: which root file system it was read from, "" for a seed
    that came with its image. problem: why that could not be read (the seed is empty then). inodes and
    content_bytes: what it needs on an ext4.
    """

    form: int = FORM
    key: str
    source: str = ""
    problem: str = ""
    inodes: int
    content_bytes: int


class Stopped(Exception):
    """The caller is gone."""


async def make_work_disk(path: str | Path, *, size_bytes: int, seed: Path, programs: E2fsprogs) -> None:
    """Write a work disk with a seed's content to `path`, by rename. NO_SPACE where it is too small for it."""
    stamp = read_stamp(seed)
    if stamp is None:
        raise invalid(f"{seed} is no work seed")
    if stamp.content_bytes > size_bytes:
        raise BangerError(
            ErrorCode.NO_SPACE,
            f"the image's /root needs {-(-stamp.content_bytes >> 20)} MiB,"
            f" and the work disk has {size_bytes >> 20} MiB",
            hint="make the VM with a larger --disk-size",
        )
    async with renamed(path) as temporary:
        await ext4.make(
            temporary,
            size_bytes=size_bytes,
            programs=programs,
            tar=seed,
            label=LABEL,
            inodes=stamp.inodes * 3 // 2,
        )


@asynccontextmanager
async def renamed(path: str | Path) -> AsyncIterator[Path]:
    """A name beside `path` to make a disk at: it becomes `path` at the end, and goes when that fails."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        try:
            yield temporary
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise from_os_error(error, f"making {target}") from error


def prepare(
    seed: Path,
    *,
    rootfs: str,
    key: str,
    files: Sequence[GuestFile],
    stop: threading.Event | None = None,
) -> Stamp:
    """Bring the seed up to date: nothing to do for one with the same key, from the same root file system.

    rootfs: where /root is read from; "" where the seed came with the image. files: paths below /root
    (".ssh/authorized_keys"), which win over the image's; their folders are 0755, `.ssh` 0700. A root file
    system that cannot be read gives an empty seed whose stamp says why; a broken seed is IMAGE_INVALID.
    stop: set from elsewhere, ends it with Stopped. Blocking. One at a time for a seed.
    """
    try:
        found = read_stamp(seed)
        source = _identity(rootfs) if rootfs else ""
        if found is not None and (found.form, found.key, found.source) == (FORM, key, source):
            return found
        descriptor = os.open(rootfs or seed, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            problem = ""
            if rootfs:
                home, problem = _of_rootfs(descriptor)
            else:
                home = home_of_seed(descriptor, seed)
            with tempfile.TemporaryFile(dir=seed.parent) as spool:
                _lay(home, files, spool)
                return _write(
                    seed, home, key=key, source=source, problem=problem, stop=stop or threading.Event()
                )
        finally:
            os.close(descriptor)
    except (BadTar, TooLarge) as error:
        raise invalid(f"the work seed {seed} is broken", details=str(error)) from error
    except OSError as error:
        raise from_os_error(error, f"making the work seed {seed}") from error


def read_stamp(seed: Path) -> Stamp | None:
    """None for what is not there or is no seed in this form. Blocking, one small read."""
    try:
        with seed.open("rb") as file:
            head = file.read(512 + _MAX_STAMP)
    except FileNotFoundError:
        return None
    comment = _COMMENT.match(head[512:]) if head[156:157] == b"g" else None
    if comment is None:
        return None
    try:
        return msgspec.json.decode(comment[1], type=Stamp)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def copy_home(seed: Path, rootfs: Path) -> bool:
    """Write a root file system's /root as an image's own seed; False where it cannot be read. Blocking."""
    stamp = prepare(seed, rootfs=str(rootfs), key="", files=())
    if stamp.problem:
        seed.unlink()
    return not stamp.problem


def _identity(rootfs: str) -> str:
    found = os.stat(rootfs)
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _of_rootfs(descriptor: int) -> tuple[Folder, str]:
    try:
        return Ext4(descriptor).folder(WORK_ROOT.encode()) or new_folder(0, 0o700), ""
    except ImageError as error:
        return new_folder(0, 0o700), error.brief[:500]


def home_of_seed(descriptor: int, seed: Path) -> Folder:
    """The tree of a tar of an image's /root, of any owner and with whatever a home has no business with.

    descriptor: of the open seed, which the tree's contents lie in.
    """
    tree = LayerTree(max_nodes=MAX_ENTRIES, max_index=_MAX_INDEX, max_steps=MAX_ENTRIES)
    tree.root.mode = 0o700
    bytes_left = _MAX_INDEX
    for header in read_headers(descriptor, 0, os.fstat(descriptor).st_size):
        bytes_left -= len(header.name) + len(header.target)
        if bytes_left < 0:
            raise invalid(f"the work seed {seed} has more names than a home can have")
        parts = split(header.name)
        if not parts:
            tree.root.mode = header.mode & 0o7777
        elif (inode := _inode(tree, header, descriptor)) is not None:
            tree.put(header.name, inode)
    return tree.root


def _inode(tree: LayerTree, header: Header, descriptor: int) -> Inode | None:
    """None for sockets, pipes and devices, and for links to them."""
    mode, mtime = header.mode & 0o7777, header.mtime
    if header.kind == FOLDER:
        folder = new_folder(0, mode)
        folder.mtime = mtime
        return folder
    if header.kind == SYMLINK:
        return Inode(kind=SYMLINK, mode=0o777, mtime=mtime, target=header.target)
    if header.kind == FILE:
        return Inode(
            kind=FILE,
            mode=mode,
            mtime=mtime,
            size=header.size,
            source=descriptor,
            position=header.position,
            pieces=header.pieces,
        )
    if header.kind == LINK:
        there = tree.find(split(header.target, what="a hard link to "))
        if there is not None and there.kind != FOLDER:
            there.names += 1
            return there
    return None


def _lay(home: Folder, files: Sequence[GuestFile], spool: IO[bytes]) -> None:
    """Put banger's own files in place of the image's, never through a symlink of the image's."""
    for file in files:
        path = clean_path(file.path)
        if not path:
            raise invalid("a file for the work disk without a name")
        *parents, name = path.encode().split(b"/")
        folder = folder_above(home, parents)
        position = spool.tell()
        spool.write(file.content)
        place(
            folder,
            name,
            Inode(
                kind=FILE,
                mode=file.mode & 0o7777,
                size=len(file.content),
                source=spool.fileno(),
                position=position,
            ),
        )
    spool.flush()


def folder_above(home: Folder, parents: Sequence[bytes]) -> Folder:
    """The folder at a path, made where there is none; what is there and is no folder goes."""
    folder = home
    for part in parents:
        there = folder.children.get(part)
        if not isinstance(there, Folder):
            there = new_folder(0, 0o700 if part == b".ssh" else 0o755)
            place(folder, part, there)
        folder = there
    return folder


def place(folder: Folder, name: bytes, inode: Inode) -> None:
    """In place of what is there, of which other names may stay."""
    there = folder.children.pop(name, None)
    if there is not None:
        there.names -= 1
        if isinstance(there, Folder):
            for _, below in walk(there):
                below.names -= 1
    folder.children[name] = inode


def _write(seed: Path, home: Folder, *, key: str, source: str, problem: str, stop: threading.Event) -> Stamp:
    """Beside the seed, and into its place once it is on the disk: the image's /root may be nowhere else."""

    def heard(_count: int) -> None:
        if stop.is_set():
            raise Stopped

    need = measure(home)
    stamp = Stamp(
        key=key, source=source, problem=problem, inodes=need.inodes, content_bytes=need.content_bytes
    )
    require_space(seed.parent, need.content_bytes, what=f"making {seed}")
    temporary = seed.with_name(f".{seed.name}.tmp")
    try:
        with temporary.open("wb") as out:
            comment = msgspec.json.encode(stamp).decode()
            out.write(tarfile.TarInfo.create_pax_global_header({"comment": comment}))
            write_tree(home, out, heard=heard)
            os.fsync(out.fileno())
        os.replace(temporary, seed)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return stamp
