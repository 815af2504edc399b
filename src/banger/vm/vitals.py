"""What a VM is doing now: its figures, its guest's health, and the small care that running ones get.

VMService's hands for `vm stats`, `vm health` and the background rounds. Nothing here touches a VM (SPEC §2)
and nothing waits for a lifecycle operation: of a VM that is busy, what is known is used. Nothing is left
after a crash but figures in the store.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient, Health
from banger.guest.errors import GuestTimeout
from banger.model.records import VMHealth, VMRecord, VMStats
from banger.system.logcap import cut_head, punch_head
from banger.system.socketuse import connections
from banger.vm.live import LiveMachines
from banger.vm.liveness import vm_alive
from banger.vm.locks import VMLocks
from banger.vm.services import Services
from banger.vm.stats import CpuSample, collect
from banger.vmm.protocol import CONSOLE_LOG, METRICS_FILE, MONITOR_LOG, VSOCK_SOCKET

log = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 3.0
CLOCK_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 5.0
SAMPLE_AGE_S = 2.0
"""A CPU sample younger than that stays: over a few ticks a share of CPU says nothing."""
LOG_LIMIT_BYTES = 16 << 20
LOG_KEEP_BYTES = 1 << 20
METRICS_LIMIT_BYTES = 4 << 20

Agent = Callable[[str, float], AgentClient]


def agent_of(vm_dir: str, timeout_s: float) -> AgentClient:
    return AgentClient(vm_dir, timeout_s=timeout_s)


class Vitals:
    def __init__(
        self, services: Services, *, locks: VMLocks, live: LiveMachines, agent: Agent = agent_of
    ) -> None:
        self._services = services
        self._locks = locks
        self._live = live
        self._agent = agent
        self._samples: dict[str, CpuSample] = {}
        self._disk_problems: dict[str, str] = {}

    async def stats(self, vm_id: str) -> VMStats:
        """Taken now and stored; of a dead VM only what its disks take. NOT_FOUND without such a VM."""
        async with self._locks.hold_if_free(vm_id):
            services = self._services
            record = self._record(vm_id)
            before = self._samples.get(vm_id)
            stats, sample = await asyncio.to_thread(
                collect, record, services.cache.get(vm_id), boot_id=services.boot_id, before=before
            )
            self._keep_sample(vm_id, before=before, sample=sample)
            if not await services.table.update_stats(vm_id, stats):
                self._samples.pop(vm_id, None)
            await self._look_at_disk(record)
            return stats

    async def _look_at_disk(self, record: VMRecord) -> None:
        """A root disk that runs out of room is named in the log, once, before it breaks the guest."""
        if not self._services.cache.get(record.id).dm_name:
            self._disk_problems.pop(record.id, None)
            return
        problem = await self._services.disks.of(record).usage(record)
        if problem and problem != self._disk_problems.get(record.id):
            log.warning("%s", problem)
        self._disk_problems[record.id] = problem

    async def health(self, vm_id: str) -> VMHealth:
        """Within 3 s. A VM that is not alive is not healthy; an agent that fails or cannot be reached is
        an error."""
        async with self._locks.hold_if_free(vm_id):
            record = self._record(vm_id)
            alive = self._alive(record)
        if not alive:
            return VMHealth(vm_id=record.id, name=record.name, state=record.state, healthy=False)
        if not record.runtime.vsock_path:
            raise BangerError(ErrorCode.GUEST_UNREACHABLE, f"{record.name} has no vsock")
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                said = await self._ask_health(record)
        except TimeoutError as error:
            raise GuestTimeout("say how it is", HEALTH_TIMEOUT_S) from error
        return VMHealth(
            vm_id=record.id, name=record.name, state=record.state, healthy=True, **dataclasses.asdict(said)
        )

    async def flush_metrics(self, vm_id: str) -> None:
        """Have the monitor write its metrics. Nothing for a VM that this daemon does not watch."""
        live = self._live.get(vm_id)
        if live is not None:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await live.machine.flush_metrics()

    async def set_clock(self, vm_id: str) -> None:
        """The guest's clock to the host's. Nothing for a VM that is not alive."""
        record = self._record(vm_id)
        if not self._alive(record):
            return
        async with asyncio.timeout(CLOCK_TIMEOUT_S):
            async with self._agent(record.runtime.vm_dir, CLOCK_TIMEOUT_S) as agent:
                await agent.set_time()

    async def cap_logs(self, vm_id: str) -> None:
        """Cut the logs of a running VM where they are too long. The console's writer appends; other files'
        writers may not."""
        record = self._services.table.get(vm_id)
        if record is not None:
            await asyncio.to_thread(cap_files, record.runtime.vm_dir)

    async def connections(self, vm_id: str) -> int:
        """Open connections to the guest's socket: shells, commands, copies, through the daemon or not."""
        pids = [process.pid for process in self._services.cache.get(vm_id).processes]
        return sum([await asyncio.to_thread(connections, pid, VSOCK_SOCKET) for pid in pids])

    async def in_use(self, vm_id: str) -> bool:
        """Somebody is connected, or a session runs in the guest. One that does not answer runs none."""
        if await self.connections(vm_id):
            return True
        record = self._record(vm_id)
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                return (await self._ask_health(record)).running_sessions > 0
        except (TimeoutError, BangerError) as error:
            log.info("%s: its agent does not say whether sessions run: %s", record.name, error)
            return False

    async def _ask_health(self, record: VMRecord) -> Health:
        async with self._agent(record.runtime.vm_dir, HEALTH_TIMEOUT_S) as agent:
            return await agent.health()

    def _record(self, vm_id: str) -> VMRecord:
        record = self._services.table.get(vm_id)
        if record is None:
            self._samples.pop(vm_id, None)
            raise BangerError(ErrorCode.NOT_FOUND, f"no VM {vm_id[:12]}: it was deleted meanwhile")
        return record

    def _alive(self, record: VMRecord) -> bool:
        return vm_alive(record, self._services.cache.get(record.id), boot_id=self._services.boot_id)

    def _keep_sample(self, vm_id: str, *, before: CpuSample | None, sample: CpuSample | None) -> None:
        if sample is None:
            self._samples.pop(vm_id, None)
        elif before is None or before.pid != sample.pid or sample.at_s - before.at_s >= SAMPLE_AGE_S:
            self._samples[vm_id] = sample


def cap_files(vm_dir: str) -> None:
    """Blocking. One file's failure is logged."""
    for name, cap, limit in (
        (CONSOLE_LOG, cut_head, LOG_LIMIT_BYTES),
        (MONITOR_LOG, punch_head, LOG_LIMIT_BYTES),
        (METRICS_FILE, punch_head, METRICS_LIMIT_BYTES),
    ):
        try:
            if cap(f"{vm_dir}/{name}", limit_bytes=limit, keep_bytes=LOG_KEEP_BYTES):
                log.info("cut %s/%s, which was over %d MiB", vm_dir, name, limit >> 20)
        except OSError as error:
            log.warning("cannot cut %s/%s: %s", vm_dir, name, error)
