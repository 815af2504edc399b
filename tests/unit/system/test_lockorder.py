"""Locks are taken in one order, or the debug run says so at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from banger.image.staging import exclusive
from banger.system.lockorder import VARIABLE, LockOrderViolation, OrderedLock, Rank, unheld
from banger.vm.locks import VMLocks

pytestmark = pytest.mark.anyio


async def hold(lock: OrderedLock) -> None:
    async with lock:
        pass


def test_the_suite_asserts_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    assert os.environ[VARIABLE] == "1"


async def test_downwards_is_fine_and_what_was_let_go_counts_no_more() -> None:
    locks = VMLocks()
    reservation, leaf = OrderedLock(Rank.RESERVATION, "names"), OrderedLock(Rank.LEAF, "bridge")
    async with locks.hold("a" * 64), reservation, leaf:
        assert leaf.locked()
    async with leaf:
        pass
    async with locks.hold("a" * 64), leaf:
        pass


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (Rank.LEAF, Rank.VM),
        (Rank.LEAF, Rank.RESERVATION),
        (Rank.RESERVATION, Rank.VM),
        (Rank.KERNEL, Rank.IMAGE),
        (Rank.LEAF, Rank.LEAF),
        (Rank.VM, Rank.VM),
    ],
)
async def test_upwards_and_sideways_raise(outer: Rank, inner: Rank) -> None:
    wrong = OrderedLock(inner, "inner")
    async with OrderedLock(outer, "outer"):
        with pytest.raises(LockOrderViolation, match=r"lock inner is taken under the \w+ lock outer"):
            await hold(wrong)
        assert not wrong.locked()


async def test_two_vms_at_once_raise_and_leave_no_lock_behind() -> None:
    locks = VMLocks()
    async with locks.hold("a" * 64):
        with pytest.raises(
            LockOrderViolation, match="the vm lock bbbbbbbb is taken under the vm lock aaaaaaaa"
        ):
            async with locks.hold("b" * 64):
                pass
    assert not locks.is_held("b" * 64)
    async with locks.hold("b" * 64):
        pass


async def test_a_vms_lock_under_an_artifacts_raises(tmp_path: Path) -> None:
    locks = VMLocks()
    async with exclusive(tmp_path / "kernels" / ".lock-debian"):
        with pytest.raises(LockOrderViolation, match="under the kernel lock debian"):
            async with locks.hold("a" * 64):
                pass
    async with locks.hold("a" * 64), exclusive(tmp_path / "kernels" / ".lock-debian"):
        pass


async def test_a_task_works_under_its_makers_locks_until_they_are_free() -> None:
    vm, gate = OrderedLock(Rank.VM, "a"), asyncio.Event()

    async def later() -> None:
        await gate.wait()
        await hold(OrderedLock(Rank.VM, "b"))

    async with vm:
        with pytest.raises(LockOrderViolation):
            await asyncio.create_task(hold(OrderedLock(Rank.VM, "b")))
        await asyncio.create_task(hold(OrderedLock(Rank.VM, "b")), context=unheld())
        outlives = asyncio.create_task(later())
    gate.set()
    await outlives


async def test_a_wait_that_was_cancelled_holds_nothing() -> None:
    lock = OrderedLock(Rank.VM, "a")

    async def waits() -> None:
        try:
            await hold(lock)
        except asyncio.CancelledError:
            await hold(OrderedLock(Rank.VM, "b"))

    async with lock:
        waiting = asyncio.create_task(waits(), context=unheld())
        await asyncio.sleep(0)
        waiting.cancel()
        await waiting


async def test_an_ordinary_run_asserts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    async with OrderedLock(Rank.LEAF, "outer"), OrderedLock(Rank.VM, "inner"):
        pass
