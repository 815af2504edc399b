"""Stats and health of a VM: stored, bounded, never behind a long operation, and no error of a dead VM."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient, Health
from banger.guest.errors import GuestUnreachable
from banger.model.records import VMHandles, VMRecord, VMRuntime
from banger.model.states import VMState
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.vms import VMTable
from banger.system.lockorder import unheld
from banger.system.process import boot_id, identify
from banger.vm import vitals
from banger.vm.handles import HandleCache
from banger.vm.live import LiveMachines
from banger.vm.locks import VMLocks
from banger.vm.services import Services
from banger.vm.vitals import Vitals, cap_files
from tests.unit.store.test_tables import IMAGE
from tests.unit.store.test_tables import vm as stored_vm

pytestmark = pytest.mark.anyio

HEALTH = Health(
    uptime_s=5, phase="init", init="/sbin/init", load1=0.5, memory_total_kib=2, memory_available_kib=1,
    root_total_bytes=4, root_free_bytes=3, work_total_bytes=0, work_free_bytes=0,
)  # fmt: skip


class FakeAgent:
    """`answer` is what health does; the clock settings are counted."""

    def __init__(self) -> None:
        self.answer: Callable[[], Any] = lambda: HEALTH
        self.delay_s = 0.0
        self.clock_sets = 0
        self.asked: list[tuple[str, float]] = []

    def __call__(self, vm_dir: str, timeout_s: float) -> AgentClient:
        self.asked.append((vm_dir, timeout_s))
        return cast(AgentClient, self)

    async def __aenter__(self) -> FakeAgent:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    async def health(self) -> Health:
        await asyncio.sleep(self.delay_s)
        return cast(Health, self.answer())

    async def set_time(self) -> None:
        self.clock_sets += 1


class Bench:
    """One VM in a real store, whose monitor is this very process when it is alive."""

    def __init__(self, table: VMTable, record: VMRecord) -> None:
        self.table = table
        self.record = record
        self.locks = VMLocks()
        self.agent = FakeAgent()
        self.cache = HandleCache(boot_id())
        services = msgspec.structs.replace(_NOTHING, table=table, cache=self.cache, boot_id=boot_id())
        self.vitals = Vitals(
            services, locks=self.locks, live=LiveMachines(_never), agent=cast(vitals.Agent, self.agent)
        )

    @property
    def id(self) -> str:
        return self.record.id

    def revive(self) -> None:
        me = identify(os.getpid(), role="monitor")
        assert me is not None
        self.cache.put(self.id, self.record.runtime.vm_dir, VMHandles(processes=(me,)))


_nothing: dict[str, Any] = dict.fromkeys(Services.__struct_fields__)
_NOTHING = Services(**_nothing)


async def _never(*_args: object) -> None:
    raise AssertionError("nothing ends here")


@pytest.fixture
async def bench(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Bench]:
    database = await Database.open(str(tmp_path / "banger.db"))
    await ImageTable(database).put(IMAGE)
    table = VMTable(database)
    folder = tmp_path / "vm"
    folder.mkdir()
    (folder / "work.ext4").write_bytes(b"x" * 4096)
    runtime = VMRuntime(
        guest_ip="172.16.0.2",
        vm_dir=str(folder),
        vsock_path=str(folder / "v.sock"),
        work_disk_path=str(folder / "work.ext4"),
        metrics_path=str(folder / "metrics.json"),
    )
    record = stored_vm("web", state=VMState.RUNNING, runtime=runtime)
    await table.insert(record)
    yield Bench(table, record)
    await database.close()


async def test_stats_are_stored_and_touch_nothing(bench: Bench) -> None:
    bench.revive()
    stats = await bench.vitals.stats(bench.id)
    assert stats.rss_bytes
    record = bench.table.get(bench.id)
    assert record is not None
    assert record.stats == stats
    assert record.last_touched_at == bench.record.last_touched_at
    assert record.updated_at == bench.record.updated_at


async def test_a_busy_vm_is_not_waited_for(bench: Bench) -> None:
    async with bench.locks.hold(bench.id):
        async with asyncio.timeout(50):
            stats = await bench.vitals.stats(bench.id)
            health = await bench.vitals.health(bench.id)
    assert stats.work_disk_bytes == 4096
    assert stats.rss_bytes is None
    assert not health.healthy
    assert not bench.locks.is_held(bench.id)


async def test_stats_wait_for_nobody_who_waits(bench: Bench) -> None:
    """A lock that was let go a moment ago and has waiters is as good as held."""
    enough = asyncio.Event()

    async def long() -> None:
        async with bench.locks.hold(bench.id):
            await enough.wait()

    async with asyncio.TaskGroup() as tasks:
        async with bench.locks.hold(bench.id):
            tasks.create_task(long(), context=unheld())
            await asyncio.sleep(0)
        async with asyncio.timeout(50):
            await bench.vitals.stats(bench.id)
        assert bench.locks.is_held(bench.id)
        enough.set()


async def test_unknown_vm(bench: Bench) -> None:
    for ask in (bench.vitals.stats, bench.vitals.health, bench.vitals.set_clock):
        with pytest.raises(BangerError) as caught:
            await ask("f" * 64)
        assert caught.value.code is ErrorCode.NOT_FOUND
    await bench.vitals.flush_metrics("f" * 64)
    await bench.vitals.cap_logs("f" * 64)
    assert await bench.vitals.connections("f" * 64) == 0


async def test_health_is_the_agents(bench: Bench) -> None:
    bench.revive()
    health = await bench.vitals.health(bench.id)
    assert (health.healthy, health.name, health.phase, health.load1) == (True, "web", "init", 0.5)
    assert bench.agent.asked == [(bench.record.runtime.vm_dir, 3.0)]


async def test_a_running_session_is_use(bench: Bench) -> None:
    bench.revive()
    assert not await bench.vitals.in_use(bench.id)
    bench.agent.answer = lambda: dataclasses.replace(HEALTH, running_sessions=1)
    assert await bench.vitals.in_use(bench.id)

    def gone() -> Health:
        raise GuestUnreachable("it does not answer")

    bench.agent.answer = gone
    assert not await bench.vitals.in_use(bench.id), "a mute guest would run for ever"


async def test_a_dead_vm_is_no_error(bench: Bench) -> None:
    health = await bench.vitals.health(bench.id)
    assert msgspec.to_builtins(health) == {
        "vm_id": bench.id, "name": "web", "state": "running", "healthy": False,
    }  # fmt: skip
    assert bench.agent.asked == []
    await bench.vitals.set_clock(bench.id)
    assert bench.agent.clock_sets == 0


async def test_an_agent_that_fails_or_is_silent_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.revive()

    def gone() -> Health:
        raise GuestUnreachable("the guest's agent does not answer")

    bench.agent.answer = gone
    with pytest.raises(BangerError) as caught:
        await bench.vitals.health(bench.id)
    assert caught.value.code is ErrorCode.GUEST_UNREACHABLE
    monkeypatch.setattr(vitals, "HEALTH_TIMEOUT_S", 0.1)
    bench.agent.delay_s = 30
    with pytest.raises(BangerError) as caught:
        await bench.vitals.health(bench.id)
    assert caught.value.code is ErrorCode.TIMEOUT


async def test_no_vsock_is_an_error(bench: Bench) -> None:
    bench.revive()
    runtime = msgspec.structs.replace(bench.record.runtime, vsock_path="")
    await bench.table.update(msgspec.structs.replace(bench.record, runtime=runtime))
    with pytest.raises(BangerError, match="web has no vsock") as caught:
        await bench.vitals.health(bench.id)
    assert caught.value.code is ErrorCode.GUEST_UNREACHABLE


async def test_the_clock_of_a_living_guest_is_set(bench: Bench) -> None:
    bench.revive()
    await bench.vitals.set_clock(bench.id)
    assert bench.agent.clock_sets == 1


def test_logs_are_capped_each_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "LOG_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(vitals, "LOG_KEEP_BYTES", 1 << 16)
    (tmp_path / "console.log").symlink_to(tmp_path / "elsewhere")  # cannot be cut: the next ones are
    for name in ("monitor.log", "metrics.json"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"x" * (5 << 20))
            os.fsync(file.fileno())
    cap_files(str(tmp_path))
    for name in ("monitor.log", "metrics.json"):
        assert (tmp_path / name).stat().st_blocks * 512 < 1 << 18
