"""The tap pool: order, numbering, one warming at a time, failures and close."""

from __future__ import annotations

import asyncio

import pytest

from banger.network.pool import TapPool, pool_index

pytestmark = pytest.mark.anyio


class Taps:
    """Taps with memory."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.deleted: list[str] = []
        self.fail_at = -1
        self.gate: asyncio.Event | None = None

    async def make(self, name: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if len(self.made) == self.fail_at:
            raise OSError(16, "busy")
        self.made.append(name)

    async def delete(self, name: str) -> None:
        self.deleted.append(name)


def pool_of(taps: Taps, size: int) -> TapPool:
    return TapPool(size, make=taps.make, delete=taps.delete)


async def test_warming_fills_it_and_the_last_in_is_the_first_out() -> None:
    taps = Taps()
    pool = pool_of(taps, 3)
    pool.warm()
    await pool.settled()
    assert sorted(taps.made) == ["tap-pool-0", "tap-pool-1", "tap-pool-2"]
    taken = pool.take()
    assert taken is not None
    assert pool.put_back(taken)
    assert pool.take() == taken


async def test_numbers_start_above_every_index_in_use_and_never_come_again() -> None:
    taps = Taps()
    pool = pool_of(taps, 1)
    pool.seed(["tap-pool-7", "tap-pool-x", "tap-pool-", "tap-pool-08", "eth0"])
    pool.warm()
    await pool.settled()
    assert taps.made == ["tap-pool-8"]
    pool.take()
    pool.warm()
    await pool.settled()
    assert taps.made == ["tap-pool-8", "tap-pool-9"]


async def test_two_warmings_are_one() -> None:
    taps = Taps()
    taps.gate = asyncio.Event()
    pool = pool_of(taps, 2)
    pool.warm()
    pool.warm()
    await asyncio.sleep(0)
    taps.gate.set()
    await pool.settled()
    assert len(taps.made) == 2


async def test_the_first_failure_ends_warming_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    taps = Taps()
    taps.fail_at = 1
    pool = pool_of(taps, 4)
    pool.warm()
    await pool.settled()
    assert len(taps.made) < 4
    assert "stops warming" in caplog.text


async def test_a_full_pool_takes_none_back_and_foreign_names_never() -> None:
    pool = pool_of(Taps(), 1)
    assert pool.put_back("tap-pool-0")
    assert not pool.put_back("tap-pool-1")
    assert not pool_of(Taps(), 1).put_back("tap-fc-12345678")


async def test_close_ends_a_warming_and_drain_deletes_what_is_idle() -> None:
    taps = Taps()
    pool = pool_of(taps, 2)
    pool.warm()
    await pool.settled()
    await pool.close()
    await pool.drain()
    assert sorted(taps.deleted) == sorted(taps.made)
    pool.warm()
    await pool.settled()
    assert len(taps.made) == 2


async def test_size_zero_is_off() -> None:
    taps = Taps()
    pool = pool_of(taps, 0)
    pool.warm()
    await pool.settled()
    assert taps.made == []
    assert pool.take() is None


@pytest.mark.parametrize("name", ["tap-pool-01", "tap-pool--1", "tap-pool-1 ", "tap-pool-1000000", "tap-1"])
def test_names_with_a_bad_suffix_are_ignored(name: str) -> None:
    assert pool_index(name) is None
