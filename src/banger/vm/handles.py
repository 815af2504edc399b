"""VMHandles outside the database: the cache and the scratch file (SPEC §1, DESIGN "write intent").

Owns VM_DIR/handles.json and the in-memory cache; vm/ alone writes here. Written to the file (renamed
into place, no fsync: after a reboot the boot id voids it) before memory, so that what memory says is
always also on disk. After a crash of the daemon the scratch file is what reconcile starts from.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from banger.model.ids import VMId
from banger.model.records import ProcessIdentity, VMHandles

SCRATCH_FILE = "handles.json"
_SCRATCH_LIMIT = 64 * 1024  # bytes; ours are under 1 KiB


class ScratchRead(msgspec.Struct, frozen=True, kw_only=True):
    """What the scratch file said. problem: "" or why it could not be used (then handles is empty)."""

    handles: VMHandles = VMHandles()
    missing: bool = False
    problem: str = ""


def read_scratch(vm_dir: str) -> ScratchRead:
    """Missing → empty; unreadable or corrupt → empty, with the problem named."""
    path = f"{vm_dir}/{SCRATCH_FILE}"
    try:
        with open(path, "rb") as file:
            data = file.read(_SCRATCH_LIMIT + 1)
    except FileNotFoundError:
        return ScratchRead(missing=True)
    except OSError as error:
        return ScratchRead(problem=f"{path}: {error.strerror}")
    if len(data) > _SCRATCH_LIMIT:
        return ScratchRead(problem=f"{path}: too large")
    try:
        return ScratchRead(handles=msgspec.json.decode(data, type=VMHandles))
    except msgspec.MsgspecError as error:
        return ScratchRead(problem=f"{path}: {error}")


def write_scratch(vm_dir: str, handles: VMHandles) -> None:
    """Rename into place; an empty record removes the file."""
    path = f"{vm_dir}/{SCRATCH_FILE}"
    if handles.is_empty():
        remove_scratch(vm_dir)
        return
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(handles))
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def remove_scratch(vm_dir: str) -> None:
    for name in (SCRATCH_FILE, f"{SCRATCH_FILE}.tmp"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{vm_dir}/{name}")


class HandleCache:
    """The handles of every VM as this daemon knows them. One event loop, one writer, many readers."""

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self._handles: dict[str, VMHandles] = {}

    def get(self, vm_id: str) -> VMHandles:
        return self._handles.get(vm_id, VMHandles(boot_id=self.boot_id))

    def known(self, vm_id: str) -> bool:
        return vm_id in self._handles

    def all(self) -> dict[str, VMHandles]:
        return dict(self._handles)

    def put(self, vm_id: VMId | str, vm_dir: str, handles: VMHandles) -> VMHandles:
        """File first, then memory. Raises OSError when the file cannot be written."""
        handles = msgspec.structs.replace(handles, boot_id=self.boot_id)
        write_scratch(vm_dir, handles)
        if handles.is_empty():
            self._handles.pop(vm_id, None)
        else:
            self._handles[vm_id] = handles
        return handles

    def change(
        self,
        vm_id: str,
        vm_dir: str,
        *,
        tap_device: str | None = None,
        base_loop: str | None = None,
        cow_loop: str | None = None,
        dm_name: str | None = None,
        dm_dev: str | None = None,
        processes: tuple[ProcessIdentity, ...] | None = None,
    ) -> VMHandles:
        """Put with only the named fields changed."""
        old = self.get(vm_id)
        return self.put(
            vm_id,
            vm_dir,
            VMHandles(
                processes=old.processes if processes is None else processes,
                tap_device=old.tap_device if tap_device is None else tap_device,
                base_loop=old.base_loop if base_loop is None else base_loop,
                cow_loop=old.cow_loop if cow_loop is None else cow_loop,
                dm_name=old.dm_name if dm_name is None else dm_name,
                dm_dev=old.dm_dev if dm_dev is None else dm_dev,
            ),
        )

    def clear(self, vm_id: str, vm_dir: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            remove_scratch(vm_dir)
        self._handles.pop(vm_id, None)
