"""A folder of a work disk that no VM uses, as a tar: the work of a dead VM, unmounted and without root.

What the guest's kernel had in the journal is brought into the file system first, as its next mount would do
it; the disk is the guest's to damage, so what cannot be read is named and the rest is given. The daemon gives
`DiskFolders(…).read` to the workspace room. The tar is the caller's; a replay that a crash interrupts is
finished by the next one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from banger.image.errors import from_os_error, invalid, not_found
from banger.image.ext4tree import Ext4
from banger.image.treetar import write_tree
from banger.model.notes import Notes
from banger.system import ext4
from banger.system.diskroom import DiskRoom
from banger.system.errors import CommandError
from banger.system.ext4 import E2fsprogs
from banger.system.tarheaders import BadTar
from banger.system.threads import in_thread


class Stopped(Exception):
    """The caller is gone."""


class DiskFolders:
    """programs: e2fsprogs, obtained when a journal must be replayed."""

    def __init__(self, programs: Callable[[], Awaitable[E2fsprogs]]) -> None:
        self._programs = programs

    async def read(self, disk: str, inner_path: str, out: BinaryIO) -> tuple[str, ...]:
        """Write the tar of the folder inner_path (below the disk's root, `repo`) to the empty file `out`.

        Returns a sentence for each thing that could not be read. NOT_FOUND where there is no such folder or
        disk, IMAGE_INVALID where it is no file system any more, NO_SPACE. A journal is replayed into `disk`.
        """
        notes = Notes()
        stop = threading.Event()
        try:
            if await in_thread(lambda: _needs_recovery(disk)):
                await self._replay(disk, notes)
            await in_thread(lambda: _write(disk, inner_path, out, notes=notes, stop=stop), stop=stop.set)
        except FileNotFoundError as error:
            raise not_found(f"there is no work disk {disk}") from error
        except BadTar as error:
            raise invalid(f"what is on {disk} cannot be written: {error}") from error
        except OSError as error:
            raise from_os_error(error, f"reading {disk}") from error
        return notes.lines()

    async def _replay(self, disk: str, notes: Notes) -> None:
        try:
            whole = await ext4.replay_journal(disk, programs=await self._programs())
        except CommandError:  # or past its deadline
            whole = False
        if not whole:
            notes.add("the journal of its disk is damaged: what was written last may be missing")


def _needs_recovery(disk: str) -> bool:
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Ext4(descriptor, notes=Notes()).needs_recovery
    finally:
        os.close(descriptor)


def _write(disk: str, inner_path: str, out: BinaryIO, *, notes: Notes, stop: threading.Event) -> None:
    room = DiskRoom(out.fileno())
    before = 0

    def heard(written: int = 0) -> None:
        nonlocal before
        if stop.is_set():
            raise Stopped
        room.use(written - before if written else 0)
        before = written or before

    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = Ext4(descriptor, notes=notes, heard=heard).folder(os.fsencode(inner_path.strip("/")))
        if found is None:
            raise not_found(f"there is no workspace on {disk}: it has no folder {inner_path}")
        write_tree(found, out, heard=heard, holes=True)
    finally:
        os.close(descriptor)
