"""Where the guest's git has files of ours, and the copy of the index there: without a program of the guest's.

Used by GuestRepository. The folder `banger-keep` is below /run (or /tmp), root's alone; what an earlier keep
left in it goes when the next one begins, and a guest's boot empties both. What a file holds that comes out of
the guest goes back into it unread.
"""

from __future__ import annotations

import io
import secrets
import stat
import tarfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from banger.errors import BangerError, ErrorCode
from banger.guest.copyin import copy_in
from banger.guest.copyout import copy_out_memory
from banger.guest.errors import AgentRefused
from banger.workspace.errors import WorkNotKept
from banger.workspace.repository import LISTING

FOLDER = "banger-keep"
_BLOCK = 512


class Scratch:
    """Of one keep in the guest of vm_dir. roots: folders in the guest, the first that takes it is used."""

    def __init__(self, vm_dir: str, roots: Sequence[str]) -> None:
        self._vm_dir = vm_dir
        self._roots = roots
        self._root: str | None = None

    async def folder(self) -> str:
        """A new one."""
        name = secrets.token_hex(8)
        if self._root is not None:
            await copy_in(self._vm_dir, f"{self._root}/{FOLDER}", _folders([name]))
            return f"{self._root}/{FOLDER}/{name}"
        refused: AgentRefused | None = None
        for root in self._roots:
            try:
                await copy_in(self._vm_dir, root, _folders([FOLDER, f"{FOLDER}/{name}"]), replace=True)
            except AgentRefused as error:
                refused = error
                continue
            self._root = root
            return f"{root}/{FOLDER}/{name}"
        why = refused.brief if refused else "nowhere to look"
        raise WorkNotKept(f"no temporary folder can be made in the guest ({why})")

    async def copy(self, source: str, target: str) -> bool:
        """Copy a file of the guest's, with its time, to a path in a folder of ours. False: there is none."""
        folder, _, name = target.rpartition("/")
        try:
            archive = await copy_out_memory(self._vm_dir, source, most_bytes=LISTING)
        except BangerError as error:
            if error.code is ErrorCode.NOT_FOUND:
                return False
            raise
        _rename(archive.getbuffer(), name.encode())
        await copy_in(self._vm_dir, folder, archive)
        return True

    async def clear(self) -> None:
        """Remove all of it; the empty folder stays."""
        root, self._root = self._root, None
        if root is not None:
            await copy_in(self._vm_dir, root, _folders([FOLDER]), replace=True)


def _folders(names: Iterable[str]) -> BinaryIO:
    """A tar of empty private folders."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(entry)
    made.seek(0)
    return made


def _rename(archive: memoryview, name: bytes) -> None:
    """Give the one file of the agent's archive another name, and rights to nobody else."""
    header = archive[:_BLOCK]
    if len(header) < _BLOCK or bytes(header[156:157]) != tarfile.REGTYPE:
        raise WorkNotKept("the repository's index is no plain file")
    header[0:100] = name.ljust(100, b"\0")
    header[100:108] = b"%07o\0" % (stat.S_IRUSR | stat.S_IWUSR)
    header[345:500] = bytes(155)  # what would stand before the name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
