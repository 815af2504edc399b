"""The rounds that go on while the daemon serves: stats, metrics, stale VMs, clocks, logs, work (SPEC §2).

Made and started by daemon/compose.py once the services are open, ended before they are closed. Each VM is
looked at by itself: one VM's failure is logged and the round goes on. A round that takes longer than its
interval is followed by the next after a whole interval. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from banger.config.settings import Settings
from banger.model.records import VMRecord, VMStats
from banger.model.states import VMState
from banger.vm.errors import describe_cause

log = logging.getLogger(__name__)

STALE_INTERVAL_S = 60.0
CLOCK_INTERVAL_S = 5.0
KEEP_INTERVAL_S = 180.0
"""What a guest that panics, or a host that loses power, costs of the work in its workspace at most."""
SUSPENDED_S = 1.0
"""What the boot clock gains on the monotonic one in a suspend; less is noise."""
SHORTEST_INTERVAL_S = 0.01

OnVM = Callable[[str], Awaitable[object]]


class VMCare(Protocol):
    """The part of VMService that the rounds use."""

    def list(self) -> Sequence[VMRecord]: ...

    async def stats(self, vm_id: str) -> VMStats: ...

    async def flush_metrics(self, vm_id: str) -> None: ...

    async def cap_logs(self, vm_id: str) -> None: ...

    async def set_clock(self, vm_id: str) -> None: ...

    async def stop_if_stale(self, vm_id: str, *, after_s: float) -> bool: ...

    async def keep_work(self, vm_id: str) -> bool: ...


def suspended_total_s() -> float:
    """How long this host has been suspended since its boot, plus a constant."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Background:
    def __init__(
        self,
        vms: VMCare,
        settings: Settings,
        *,
        stale_interval_s: float = STALE_INTERVAL_S,
        clock_interval_s: float = CLOCK_INTERVAL_S,
        keep_interval_s: float = KEEP_INTERVAL_S,
        suspended: Callable[[], float] = suspended_total_s,
    ) -> None:
        """An interval of 0 turns its round off."""
        self._vms = vms
        self._settings = settings
        self._stale_interval_s = stale_interval_s
        self._clock_interval_s = clock_interval_s
        self._keep_interval_s = keep_interval_s
        self._suspended = suspended
        self._slept_s = suspended()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        settings = self._settings
        stale_s = self._stale_interval_s if settings.auto_stop_stale_after_s > 0 else 0.0
        for name, interval_s, work in (
            ("stats", settings.stats_poll_interval_s, self.stats_round),
            ("metrics", settings.metrics_poll_interval_s, self.metrics_round),
            ("stale", stale_s, self.stale_round),
            ("clocks", self._clock_interval_s, self.clock_round),
            ("work", self._keep_interval_s, self.keep_round),
        ):
            if interval_s > 0:
                rounds = self._rounds(name, max(interval_s, SHORTEST_INTERVAL_S), work)
                self._tasks.append(asyncio.create_task(rounds, name=f"background {name}"))

    async def close(self) -> None:
        """End the rounds. A stop that is under way is cancelled; the guest goes on shutting down."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stats_round(self) -> None:
        await self._on_each("stats", self._vms.stats)
        await self._on_each("log size", self._vms.cap_logs)

    async def metrics_round(self) -> None:
        async def flush_and_read(vm_id: str) -> None:
            await self._vms.flush_metrics(vm_id)
            await self._vms.stats(vm_id)

        await self._on_each("metrics", flush_and_read)

    async def stale_round(self) -> None:
        after_s = self._settings.auto_stop_stale_after_s
        await self._on_each("auto-stop", lambda vm_id: self._vms.stop_if_stale(vm_id, after_s=after_s))

    async def keep_round(self) -> None:
        """The work in the workspaces, from the guests that have written since."""
        await self._on_each("the work", self._vms.keep_work)

    async def clock_round(self) -> None:
        """Where the host was suspended since the last look: the guests' clocks stood still, all at once."""
        slept_s, before_s = self._suspended(), self._slept_s
        self._slept_s = slept_s
        if slept_s - before_s < SUSPENDED_S:
            return
        log.info("the host was suspended for %.0f s: setting the guests' clocks", slept_s - before_s)
        running = [record.id for record in self._vms.list() if record.state is VMState.RUNNING]
        async with asyncio.TaskGroup() as group:
            for vm_id in running:
                group.create_task(_guarded("clock", vm_id, self._vms.set_clock))

    async def _on_each(self, what: str, work: OnVM) -> None:
        for record in self._vms.list():
            if record.state is VMState.RUNNING:
                await _guarded(what, record.id, work)

    async def _rounds(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except Exception:
                log.exception("the %s round failed", name)


async def _guarded(what: str, vm_id: str, work: OnVM) -> None:
    try:
        await work(vm_id)
    except Exception as error:
        log.warning("%s of %s: %s", what, vm_id[:8], describe_cause(error))
