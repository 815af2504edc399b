"""The machines that this daemon watches: connections, the guest's caller, and a watcher of the exit.

Owns one Live per running VM. Closing one lets the machine run on. Nothing here survives a crash, and
nothing needs to: reconcile adopts what runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from banger.guest.ready import ReadyListener
from banger.system.lockorder import unheld
from banger.vm.locks import finish
from banger.vmm.protocol import Exit, Machine

log = logging.getLogger(__name__)

CLOSE_DEADLINE_S = 10.0

OnExit = Callable[[str, Exit, str], Awaitable[None]]
"""(vm_id, how the monitor ended, what the guest said it was ending for: "" | poweroff | reboot | halt)"""


class Live:
    def __init__(self, machine: Machine, ready: ReadyListener) -> None:
        self.machine = machine
        self.ready = ready
        self.watcher: asyncio.Task[None] | None = None


class LiveMachines:
    def __init__(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit
        self._live: dict[str, Live] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def get(self, vm_id: str) -> Live | None:
        return self._live.get(vm_id)

    def add(self, vm_id: str, machine: Machine, ready: ReadyListener) -> Live:
        """Keep it and watch for its exit. Replaces nothing: forget an older one first."""
        live = Live(machine, ready)
        self._live[vm_id] = live
        live.watcher = asyncio.create_task(
            self._watch(vm_id, live), name=f"watch {vm_id[:8]}", context=unheld()
        )
        self._watchers.add(live.watcher)
        live.watcher.add_done_callback(self._watchers.discard)
        return live

    async def forget(self, vm_id: str) -> None:
        """Stop watching and let go of the connections, all of them even when cancelled. The machine is not
        touched."""
        live = self._live.pop(vm_id, None)
        if live is None:
            return
        if live.watcher is not None and live.watcher is not asyncio.current_task():
            live.watcher.cancel()
        await finish(_let_go(live), deadline_s=CLOSE_DEADLINE_S)

    async def close(self) -> None:
        for vm_id in list(self._live):
            await self.forget(vm_id)
        watchers = list(self._watchers)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(self, vm_id: str, live: Live) -> None:
        how = await live.machine.exited()
        log.info("machine of %s ended: %s (guest said %r)", vm_id[:8], how.reason, live.ready.ending)
        try:
            await self._on_exit(vm_id, how, live.ready.ending)
        except Exception:
            log.exception("handling the end of %s failed", vm_id[:8])


async def _let_go(live: Live) -> None:
    try:
        await live.machine.close()
    finally:
        await live.ready.aclose()
