"""The rounds: every running VM, one failure at a time, and an end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.model.records import VMRecord, VMStats
from banger.model.states import VMState
from banger.vm.background import Background
from tests.unit.vm.test_planner import record_of

pytestmark = pytest.mark.anyio

RUNNING = (1, 2, 3)


class FakeCare:
    """Remembers what was done to whom. `broken` VMs fail at everything."""

    def __init__(self) -> None:
        self.records = [record_of(number, VMState.RUNNING) for number in RUNNING]
        self.records.append(record_of(4, VMState.STOPPED))
        self.broken: set[int] = set()
        self.done: list[tuple[str, int]] = []
        self.happened = asyncio.Event()

    def list(self) -> Sequence[VMRecord]:
        return self.records

    def _do(self, what: str, vm_id: str) -> None:
        number = int(vm_id, 16)
        self.happened.set()
        if number in self.broken:
            raise BangerError(ErrorCode.GUEST_UNREACHABLE, "it is broken")
        self.done.append((what, number))

    async def stats(self, vm_id: str) -> VMStats:
        self._do("stats", vm_id)
        return VMStats()

    async def flush_metrics(self, vm_id: str) -> None:
        self._do("flush", vm_id)

    async def cap_logs(self, vm_id: str) -> None:
        self._do("cap", vm_id)

    async def set_clock(self, vm_id: str) -> None:
        self._do("clock", vm_id)

    async def stop_if_stale(self, vm_id: str, *, after_s: float) -> bool:
        assert after_s == 7.0
        self._do("stale", vm_id)
        return True

    async def keep_work(self, vm_id: str) -> bool:
        self._do("keep", vm_id)
        return True


def each(*what: str, of: Sequence[int] = RUNNING) -> list[tuple[str, int]]:
    return [(name, number) for name in what for number in of]


async def test_each_round_takes_the_running_ones_and_survives_a_broken_one() -> None:
    care = FakeCare()
    care.broken = {2}
    background = Background(care, Settings(auto_stop_stale_after_s=7.0))
    await background.stats_round()
    assert care.done == each("stats", "cap", of=(1, 3))
    care.done.clear()
    await background.stale_round()
    assert care.done == each("stale", of=(1, 3))
    care.done.clear()
    await background.keep_round()
    assert care.done == each("keep", of=(1, 3))
    care.done.clear()
    await background.metrics_round()
    assert care.done == [("flush", 1), ("stats", 1), ("flush", 3), ("stats", 3)]


async def test_clocks_are_set_after_a_suspend_only() -> None:
    care = FakeCare()
    care.broken = {1}
    slept = [100.0]
    background = Background(care, Settings(), suspended=lambda: slept[0])
    await background.clock_round()
    slept[0] = 100.4
    await background.clock_round()
    assert care.done == []
    slept[0] = 400.0
    await background.clock_round()
    assert sorted(care.done) == each("clock", of=(2, 3))
    await background.clock_round()
    assert len(care.done) == 2, "once for each suspend"


async def test_rounds_come_again_until_closed() -> None:
    care = FakeCare()
    settings = Settings(stats_poll_interval_s=0.01, metrics_poll_interval_s=0, auto_stop_stale_after_s=0)
    background = Background(care, settings, clock_interval_s=0)
    background.start()
    async with asyncio.timeout(50):
        while care.done.count(("stats", 1)) < 3:
            care.happened.clear()
            await care.happened.wait()
    await background.close()
    assert {what for what, _ in care.done} == {"stats", "cap"}
    count = len(care.done)
    await asyncio.sleep(0.05)
    assert len(care.done) == count
    await background.close()


async def test_a_round_that_fails_altogether_does_not_end_the_rounds() -> None:
    class Unreadable(FakeCare):
        def list(self) -> Sequence[VMRecord]:
            self.happened.set()
            self.done.append(("list", 0))
            raise BangerError(ErrorCode.STORE_ERROR, "the database is locked")

    care = Unreadable()
    background = Background(
        care,
        Settings(stats_poll_interval_s=0, metrics_poll_interval_s=0, auto_stop_stale_after_s=7.0),
        stale_interval_s=0.01,
    )
    background.start()
    async with asyncio.timeout(50):
        while len(care.done) < 3:
            care.happened.clear()
            await care.happened.wait()
    await background.close()
