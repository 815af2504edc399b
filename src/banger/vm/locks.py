"""One lock per VM, and how kill, delete and cancel end a start or stop that holds it.

The holder runs in a task of its own caller; `abort` cancels that task with a reason, the holder cleans
up under its own deadline and lets go. Who may abort it the holder says: most give way to what ends the VM
alone, background work to whoever wants the lock. Nothing survives a crash: locks live in memory only.
Order: VM lock → reservation lock → artifacts → leaf locks inside services (system/lockorder).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Container, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from banger.system.lockorder import OrderedLock, Rank
from banger.vm.errors import Aborted

T = TypeVar("T")

KILL = "kill"
DELETE = "delete"
DISCARD = "delete --discard-work"
OTHERS = "another command"
"""Whatever else waits for the lock."""
ENDING = frozenset((KILL, DELETE, DISCARD))
"""Who may end a start or a stop."""
ANYBODY = frozenset((*ENDING, OTHERS))


class _Slot:
    def __init__(self, vm_id: str) -> None:
        self.lock = OrderedLock(Rank.VM, vm_id[:8])
        self.users = 0
        self.abortable: asyncio.Task[object] | None = None
        self.aborted_by = ""
        self.gives_way_to: Container[str] = ()


class VMLocks:
    """Locks by VM id, made when needed and dropped when nobody waits."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._noting: dict[object, set[str]] = {}

    def is_held(self, vm_id: str) -> bool:
        slot = self._slots.get(vm_id)
        return slot is not None and slot.lock.locked()

    @contextmanager
    def used(self) -> Iterator[set[str]]:
        """The ids of those that are held at any time while this is open."""
        noted = {vm_id for vm_id in self._slots if self.is_held(vm_id)}
        key = object()
        self._noting[key] = noted
        try:
            yield noted
        finally:
            del self._noting[key]

    @asynccontextmanager
    async def hold(self, vm_id: str) -> AsyncIterator[None]:
        slot = self._slots.setdefault(vm_id, _Slot(vm_id))
        slot.users += 1
        try:
            async with slot.lock:
                for noted in self._noting.values():
                    noted.add(vm_id)
                yield
        finally:
            slot.users -= 1
            if slot.users == 0:
                self._slots.pop(vm_id, None)

    @asynccontextmanager
    async def hold_if_free(self, vm_id: str) -> AsyncIterator[bool]:
        """Hold it when nobody has it or waits for it (True); else never wait (False)."""
        if vm_id in self._slots:
            yield False
            return
        async with self.hold(vm_id):
            yield True

    @asynccontextmanager
    async def abortable(self, vm_id: str, name: str, *, by: Container[str] = ENDING) -> AsyncIterator[None]:
        """Inside hold: the stretch in which `abort` may cancel. Turns that cancellation into Aborted."""
        slot = self._slots[vm_id]
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        slot.abortable, slot.aborted_by, slot.gives_way_to = task, "", by
        try:
            yield
        except asyncio.CancelledError:
            if not slot.aborted_by:
                raise
            task.uncancel()
            raise Aborted(name, slot.aborted_by) from None
        finally:
            slot.abortable = None

    def abort(self, vm_id: str, by: str) -> bool:
        """Cancel the abortable stretch that holds this VM, if any; `hold` then waits for its cleanup."""
        slot = self._slots.get(vm_id)
        if slot is None or slot.abortable is None or slot.aborted_by or by not in slot.gives_way_to:
            return False
        if slot.abortable is asyncio.current_task():
            return False
        slot.aborted_by = by
        slot.abortable.cancel()
        return True


async def finish(work: Awaitable[T], *, deadline_s: float) -> T:
    """Run cleanup to its end, or its own deadline, however often the caller is cancelled meanwhile.

    A cancellation that came in between is raised again afterwards. Raises TimeoutError at the deadline.
    """

    async def bounded() -> T:
        async with asyncio.timeout(deadline_s):
            return await work

    task = asyncio.ensure_future(bounded())
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # seen: the cancellation says more to the caller
        raise asyncio.CancelledError
    return task.result()
