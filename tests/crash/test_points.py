"""Every crash point of every operation: the daemon dies there or runs into an error, and nothing is lost.

After each: the VM is running and usable, or can be started; nothing is left over; the bystander, a VM that
runs all along, did not notice. Points are those that an undisturbed run passes, so a step, an act or a repair
that is new is covered, or the last test fails. Real bridges, taps, loops, processes and files; the fake
Firecracker as the monitor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from banger.vm.planner import Fix
from banger.vm.steps import Act
from tests import capabilities
from tests.crash.driver import How
from tests.crash.operations import BEFORE
from tests.crash.walk import STEPS, Host, Points, walk, walk_reconcile

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.limit(3000),
    capabilities.require("netns", "tun", "loop"),
]

CLONE_NEWNET = 0x40000000
LAB_ALONE = {Fix.REMOVE_DM}
"""Repairs that need device-mapper: tests/unit/vm/test_executor.py passes their points."""

KEEPING_ALONE = {Act.WORKSPACE_SAVE, Act.KEEP_LIVE, Act.KEEP_DISK, Act.DELETE_WORK}
"""Acts on VMs with a workspace: tests/crash/test_keeping.py."""

Counted = dict[tuple[str, How], Points]


@pytest.fixture(scope="module")
def netns(built: None) -> Iterator[None]:
    """This process in a network namespace of its own, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(own, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(own)


@pytest.fixture(scope="module")
def host(netns: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("crash"))
    try:
        made.add_bystander()
        yield made
    finally:
        made.clean()


@pytest.fixture(scope="module")
def counted() -> Iterator[Counted]:
    """Points by operation and what happened at them; printed as the report."""
    points: Counted = {}
    yield points
    for how in (How.KILL, How.RAISE):
        found = {operation: len(those) for (operation, by), those in points.items() if by is how}
        print(f"\npoints, {how}: {sum(found.values())}, " + ", ".join(f"{k} {n}" for k, n in found.items()))


@pytest.mark.parametrize("operation", BEFORE)
def test_the_daemon_dies_at_every_point(host: Host, counted: Counted, operation: str) -> None:
    counted[operation, How.KILL] = walk(host, operation, How.KILL)


@pytest.mark.parametrize("operation", BEFORE)
def test_every_point_runs_into_an_error(host: Host, counted: Counted, operation: str) -> None:
    """No space, busy, not permitted in turn. Then it is repeated, and once more left to the next daemon."""
    counted[operation, How.RAISE] = walk(host, operation, How.RAISE)


@pytest.mark.parametrize("how", [How.KILL, How.RAISE])
def test_reconcile_dies_and_fails_at_every_point(host: Host, counted: Counted, how: How) -> None:
    counted["reconcile", how] = walk_reconcile(host, how)


@pytest.mark.parametrize("how", [How.KILL, How.RAISE])
def test_every_step_act_and_repair_was_a_point(counted: Counted, how: How) -> None:
    """What is new and not covered fails here. (Alone it has nothing to look at.)"""
    names = [f"{kind}:{step.id}" for step in STEPS for kind in ("do", "undo")]
    names += [act.value for act in Act if act not in KEEPING_ALONE]
    names += [f"fix:{fix}" for fix in Fix if fix and fix not in LAB_ALONE]
    wanted = {f"{name}:{when}" for name in names for when in ("before", "after")}
    assert {point for (_, by), points in counted.items() if by is how for point, _ in points} == wanted
