"""One VM while its lock is held: its record, its handles, and the one way to change either.

Made by VMService under the VM's lock and passed through the steps. Every change is written before it
is true in memory: handles to the scratch file, the rest (and the teardown mirror) to the store.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from banger.model.records import ProcessIdentity, VMHandles, VMRecord, now
from banger.model.states import CLAIMS_LIFE, VMState, may_become
from banger.store.vms import VMTable
from banger.system.lockorder import OrderedLock, Rank
from banger.vm.handles import HandleCache


class Subject:
    def __init__(self, record: VMRecord, *, table: VMTable, cache: HandleCache) -> None:
        self.record = record
        self._table = table
        self._cache = cache
        self._saving = OrderedLock(Rank.LEAF, f"{record.name}'s record")

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def vm_dir(self) -> str:
        return self.record.runtime.vm_dir

    @property
    def handles(self) -> VMHandles:
        return self._cache.get(self.record.id)

    async def change(self, make: Callable[[VMRecord], VMRecord], *, durable: bool = True) -> None:
        """Save make(record), written before it is true here. Steps that run at the same time take turns.

        durable False: it outlives every process, but not a power cut, and spares an fsync (2 to 8 ms). For
        what a power cut makes untrue anyway: that a VM runs, and what the kernel has of it.
        """
        async with self._saving:
            record = make(self.record)
            if record == self.record:
                return
            record = msgspec.structs.replace(record, updated_at=now())
            await self._table.update(record, durable=durable)
            self.record = record

    async def set_state(
        self, state: VMState, *, last_error: str | None = None, touch: bool = False, durable: bool = True
    ) -> None:
        """Save a state of the transition table; last_error None leaves it alone, "" clears it.

        States that claim life are never made durable (see change): reconcile ends them after a reboot.
        """

        def make(record: VMRecord) -> VMRecord:
            if state != record.state and not may_become(record.state, state):
                raise RuntimeError(f"{record.name}: {record.state} may not become {state}")
            runtime = record.runtime
            if last_error is not None:
                runtime = msgspec.structs.replace(runtime, last_error=last_error)
            touched = now() if touch else record.last_touched_at
            return msgspec.structs.replace(record, state=state, runtime=runtime, last_touched_at=touched)

        await self.change(make, durable=durable and state not in CLAIMS_LIFE)

    async def record_handles(
        self,
        *,
        tap_device: str | None = None,
        base_loop: str | None = None,
        cow_loop: str | None = None,
        dm_name: str | None = None,
        dm_dev: str | None = None,
    ) -> None:
        """Kernel objects, chosen or gone (""): scratch file, memory, then the mirror in the store."""
        handles = self._cache.change(
            self.id,
            self.vm_dir,
            tap_device=tap_device,
            base_loop=base_loop,
            cow_loop=cow_loop,
            dm_name=dm_name,
            dm_dev=dm_dev,
        )
        await self._mirror(handles)

    def record_processes(self, processes: tuple[ProcessIdentity, ...]) -> None:
        self._cache.change(self.id, self.vm_dir, processes=processes)

    def seed_handles(self, handles: VMHandles) -> None:
        """What reconcile found: becomes the scratch file and the cache."""
        self._cache.put(self.id, self.vm_dir, handles)

    async def clear_handles(self) -> None:
        """Cache, scratch file and mirror: everything is known to be gone."""
        self._cache.clear(self.id, self.vm_dir)
        await self._mirror(VMHandles())

    async def _mirror(self, handles: VMHandles) -> None:
        await self.change(
            lambda record: msgspec.structs.replace(
                record,
                runtime=msgspec.structs.replace(
                    record.runtime,
                    tap_device=handles.tap_device,
                    base_loop=handles.base_loop,
                    cow_loop=handles.cow_loop,
                    dm_name=handles.dm_name,
                    dm_dev=handles.dm_dev,
                ),
            ),
            durable=False,
        )
