"""A workspace as files on the host: copied out of a running guest, or off a work disk that no VM uses.

Used by WorkspaceService where the guest's own git cannot be asked. Both ways end in a tar, which is hostile:
stagetree.py reads its names, stagefiles.py writes what is harmless, HostRepository.adopt makes the
repository. All of it lies in the caller's private folder, which the caller removes, also after a crash; the
tar itself has no name. Cancelling waits for the thread that writes.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, Final

from banger.guest.copyout import copy_out
from banger.model.notes import Notes, sentence
from banger.system.threads import in_thread
from banger.workspace.heal import heal
from banger.workspace.hostrepository import HostRepository
from banger.workspace.service import Staged
from banger.workspace.stagefiles import Writer
from banger.workspace.stagetree import read_tree

MAX_BYTES: Final = 128 << 30
"""Of all files together, holes included: as large as a disk of banger's can be (SPEC §1)."""
WORK_DISK: Final = "work.ext4"
"""Of a VM, in its folder."""
SMALLEST: Final = 256 << 20
HOME: Final = "/root"
"""Where the guest mounts its work disk."""

DiskReader = Callable[[str, str, BinaryIO], Awaitable[tuple[str, ...]]]
"""(disk, inner_path, out): the folder's tar into an empty file; notes (image/diskfolder.DiskFolders.read)."""


class _Stopped(Exception):
    """The caller is gone."""


async def stage_guest(vm_dir: str, guest_path: str, folder: str) -> Staged:
    """A running guest's folder into `folder`, which is there, private and empty.

    NOT_FOUND where the guest has no such folder; WorkNotKept where it sends what is none, or too much;
    NO_SPACE; what copy_out raises.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as tar:
        copied = await copy_out(vm_dir, guest_path, tar, most_bytes=_most_bytes(vm_dir))
        tree, notes = await unpack(tar.fileno(), folder)
    repository = await HostRepository.adopt(
        tree, _own(folder), how="guest-files", known_as=guest_path.rstrip("/")
    )
    return Staged(repository, (*map(sentence, copied.notes), *notes))


async def stage_disk(work_disk: str, inner_path: str, folder: str, *, read_disk: DiskReader) -> Staged:
    """The same of the folder inner_path (`repo`) of the work disk of a VM that is not alive.

    The disk's journal is replayed: take the disk's time afterwards. NOT_FOUND where there is no such folder;
    what read_disk raises. What a crash of the guest tore is healed as far as it goes, with notes.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as tar:
        unread = await read_disk(work_disk, inner_path, tar)
        tree, notes = await unpack(tar.fileno(), folder)
    repository = await HostRepository.adopt(
        tree, _own(folder), how="disk", known_as=str(PurePosixPath(HOME, inner_path))
    )
    healed = await heal(repository, tree)
    return Staged(repository, (*unread, *notes, *healed))


async def unpack(tar: int, folder: str, *, most_bytes: int = MAX_BYTES) -> tuple[str, tuple[str, ...]]:
    """The tar in the file `tar` as files in folder/tree: its path, and a sentence for what is left out."""
    stop = threading.Event()
    return await in_thread(partial(_unpack, tar, folder, most_bytes=most_bytes, stop=stop), stop=stop.set)


def _unpack(tar: int, folder: str, *, most_bytes: int, stop: threading.Event) -> tuple[str, tuple[str, ...]]:
    def heard() -> None:
        if stop.is_set():
            raise _Stopped

    notes = Notes()
    top = read_tree(tar, os.fstat(tar).st_size, notes=notes, heard=heard)
    tree = os.path.join(folder, "tree")
    os.mkdir(tree, 0o700)
    Writer(tar, tree, most_bytes=most_bytes, notes=notes, heard=heard).write(top)
    return tree, notes.lines()


def _most_bytes(vm_dir: str) -> int:
    """What a guest may send: twice its work disk, as a tar is longer than its files (without their holes)."""
    try:
        return max(2 * os.stat(os.path.join(vm_dir, WORK_DISK)).st_size, SMALLEST)
    except FileNotFoundError:
        return MAX_BYTES


def _own(folder: str) -> str:
    own = os.path.join(folder, "own")
    os.mkdir(own, 0o700)
    return own
