"""Per-VM locks: one at a time, abort by kill, cleanup that no cancellation cuts short."""

from __future__ import annotations

import asyncio

import pytest

from banger.errors import ErrorCode
from banger.vm.errors import Aborted
from banger.vm.locks import VMLocks, finish

pytestmark = pytest.mark.anyio


async def test_one_vm_one_holder_other_vms_go_on() -> None:
    locks = VMLocks()
    order: list[str] = []

    async def work(vm: str, tag: str) -> None:
        async with locks.hold(vm):
            order.append(f"{tag}+")
            await asyncio.sleep(0)
            order.append(f"{tag}-")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work("a", "1"))
        tasks.create_task(work("a", "2"))
        tasks.create_task(work("b", "3"))
    assert order.index("1-") < order.index("2+")
    assert order.index("3+") < order.index("1-")
    assert not locks.is_held("a")


async def test_abort_ends_the_holder_as_aborted_and_waits_for_its_cleanup() -> None:
    locks = VMLocks()
    cleaned: list[str] = []
    started = asyncio.Event()

    async def start() -> None:
        async with locks.hold("a"), locks.abortable("a", "calm-otter"):
            try:
                started.set()
                await asyncio.Event().wait()
            finally:
                cleaned.append("yes")

    task = asyncio.create_task(start())
    await started.wait()
    assert locks.abort("a", "kill")
    async with locks.hold("a"):
        assert cleaned == ["yes"]
    with pytest.raises(Aborted) as caught:
        await task
    assert caught.value.code is ErrorCode.ABORTED
    assert "kill" in caught.value.brief


async def test_a_plain_cancellation_stays_one() -> None:
    locks = VMLocks()

    async def start() -> None:
        async with locks.hold("a"), locks.abortable("a", "x"):
            await asyncio.Event().wait()

    task = asyncio.create_task(start())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not locks.abort("a", "kill")


async def test_cleanup_runs_to_its_end_however_often_it_is_cancelled() -> None:
    gate = asyncio.Event()
    done: list[int] = []

    async def cleanup() -> None:
        await gate.wait()
        done.append(1)

    task = asyncio.create_task(finish(cleanup(), deadline_s=50))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def test_cleanup_has_a_deadline_of_its_own() -> None:
    with pytest.raises(TimeoutError):
        await finish(asyncio.Event().wait(), deadline_s=0.01)


async def test_used_notes_who_was_held_meanwhile() -> None:
    locks = VMLocks()
    with locks.used() as used:
        async with locks.hold("one"):
            with locks.used() as held:
                assert held == {"one"}
        async with locks.hold("two"):
            pass
    async with locks.hold("three"):
        assert (used, held) == ({"one", "two"}, {"one"})
