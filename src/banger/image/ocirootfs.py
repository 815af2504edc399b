"""A root file system from an image's layers: flattened, changed, and straight into mke2fs by a pipe.

The tree is in memory and the contents are in a file without a name, so nothing is written twice but what
was compressed. /root is split off as the work seed, as rootfs.py does for Debian's recipe. Needs no root and
mounts nothing. A crash leaves half-made files at the given paths, which are staging names.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from banger.image.errors import from_os_error, invalid
from banger.image.flatten import LIMITS, FlatTree, Limits, Stopped
from banger.image.layertree import Inode, new_folder
from banger.image.oci.manifest import Layer
from banger.image.rootfs import WORK_ROOT, TreeFile
from banger.image.treetar import Measure, write_tree
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.system import ext4
from banger.system.ext4 import E2fsprogs
from banger.system.tarheaders import FILE, SYMLINK, BadTar
from banger.system.threads import in_thread

MIN_SIZE = 1 << 30
LABEL = "banger-root"
_TOLD_EVERY = 16 << 20
_STEP = "rootfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFs:
    """entries: read from the layers. content_bytes: what they and what was added need on an ext4."""

    entries: int
    content_bytes: int
    size_bytes: int


async def make_rootfs(
    layers: Sequence[Layer],
    rootfs: Path,
    seed: Path,
    *,
    programs: E2fsprogs,
    size_bytes: int = 0,
    add: Sequence[TreeFile] = (),
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
) -> RootFs:
    """Write an ext4 with the layers' files to `rootfs` (0444, checked by e2fsck) and /root's to `seed`.

    layers: verified blobs, the oldest first. size_bytes: 0 means content × 1.5, at least 1 GiB. add: entries
    in place of the image's, where its symlinks lead. IMAGE_INVALID names layer and entry; NO_SPACE where
    content or disk are too small for each other.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()

    def tell(event: ProgressEvent) -> None:
        loop.call_soon_threadsafe(progress, event)

    heard = _Heard(stop, tell)
    flat = FlatTree(layers, work=rootfs.parent, limits=limits, heard=heard.unpacked)
    try:
        found = await in_thread(lambda: _prepare(flat, seed, add=add), stop=stop.set)
        wanted = size_bytes or max(MIN_SIZE, found.content_bytes * 3 // 2)
        size = -(-wanted // (1 << 20)) << 20
        await _fill(flat, rootfs, size=size, inodes=found.inodes * 3 // 2, programs=programs, heard=heard)
        await ext4.set_xattrs(rootfs, found.xattrs, programs=programs)
        await ext4.check(rootfs, programs=programs)
        rootfs.chmod(0o444)
    except OSError as error:
        raise from_os_error(error, f"making {rootfs}") from error
    finally:
        flat.close()
    return RootFs(entries=flat.entries, content_bytes=found.content_bytes, size_bytes=size)


class _Heard:
    """What threads call while they work: passes progress on, and ends them when the caller is gone."""

    def __init__(self, stop: threading.Event, tell: Callable[[ProgressEvent], None]) -> None:
        self._stop = stop
        self._tell = tell
        self._told = 0

    def unpacked(self, count: int) -> None:
        self._hear(count, "unpacking the layers")

    def written(self, count: int) -> None:
        self._hear(count, "writing the root file system")

    def _hear(self, count: int, message: str) -> None:
        if self._stop.is_set():
            raise Stopped
        if not 0 <= count - self._told < _TOLD_EVERY:
            self._told = count
            self._tell(ProgressEvent(step=_STEP, message=message, current=count))


def _prepare(flat: FlatTree, seed: Path, *, add: Sequence[TreeFile]) -> Measure:
    """Replay, add what is to be added, write the seed and measure the rest."""
    flat.__enter__()
    try:
        for file in add:
            _add_file(flat, file)
        _split_home(flat, seed)
    except BadTar as error:
        raise invalid(f"what banger adds does not fit into the image: {error.why}") from error
    return flat.measure()


def _split_home(flat: FlatTree, seed: Path) -> None:
    """The work disk is mounted at /root: its content belongs to the seed alone."""
    tree = flat.tree
    if tree.find([WORK_ROOT.encode()]) is None:
        tree.put(WORK_ROOT.encode(), new_folder(tree.layer, 0o700))
    home = tree.folder(WORK_ROOT.encode())
    if home is None or home is tree.root:
        home = new_folder(tree.layer, 0o700)
    with seed.open("wb") as out:
        write_tree(home, out)
    home.children = {}


async def _fill(
    flat: FlatTree, rootfs: Path, *, size: int, inodes: int, programs: E2fsprogs, heard: _Heard
) -> None:
    read_end, write_end = os.pipe()
    writing = asyncio.ensure_future(asyncio.to_thread(_write, flat, write_end, heard))
    try:
        await ext4.make(rootfs, size_bytes=size, programs=programs, tar=read_end, label=LABEL, inodes=inodes)
    finally:
        # the last reader: a thread that still writes gets EPIPE, and ends
        os.close(read_end)
        await asyncio.wait({writing})
        problem = None if writing.cancelled() else writing.exception()
    if problem is not None:
        raise problem


def _write(flat: FlatTree, write_end: int, heard: _Heard) -> None:
    with os.fdopen(write_end, "wb", buffering=0) as out:
        write_tree(flat.tree.root, out, heard=heard.written)


def _add_file(flat: FlatTree, file: TreeFile) -> None:
    if file.target:
        inode = Inode(kind=SYMLINK, mode=0o777, target=os.fsencode(file.target))
    else:
        source, position = flat.keep(file.content)
        size = len(file.content)
        inode = Inode(kind=FILE, mode=file.mode, size=size, source=source, position=position)
    flat.tree.put(os.fsencode(file.path), inode)
