"""The daemon dies at each point of start, stop and delete that touches loops, targets or stores: the next
one finds the VM running, or stopped and startable, and nothing of dm-snapshot's is over.

Another VM over the same image runs all along and must not notice: its loops and targets are where they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from banger.system import devicemapper, loops
from tests.capabilities import require
from tests.fakes.installed import install_fake_firecracker
from tests.lab.inside.crashes import Point, quick_to_ask
from tests.lab.inside.life import Daemon

pytestmark = [pytest.mark.lab, require("device-mapper", "loop", "tun", "nft", "kvm")]

VICTIM, OTHER = "victim", "other"
BEGINNING = ("do:system_overlay:", "do:root_disk:", "loop:attach:", "dm:create:")
ENDING = ("undo:machine:", "undo:root_disk:", "loop:detach:", "dm:remove:")
TWICE = (("dm:remove:before", 2), ("loop:detach:before", 1), ("loop:detach:before", 2))
LEAST = {"first": 3, "start": 12, "stop": 9, "delete": 4}
CASES: dict[str, tuple[str, Callable[[Point], bool]]] = {
    "first": ("start", lambda point: point[0] in ("dm:grow:after", "dm:fresh:after")),
    "start": ("start", lambda point: point[0].startswith(BEGINNING)),
    "stop": ("stop", lambda point: point[0].startswith(ENDING) and point not in TWICE),
    "delete": ("delete", lambda point: point[0] in ("loop:detach:after", "dm:remove:after")),
}
"""The operation, and at which of its points the daemon dies: the first start is the one that grows the file
system. Where two points have nothing between them but a record, stop and delete leave one out."""


def block_devices() -> tuple[set[str], set[str]]:
    """Names of targets, and loops."""
    return (
        {target.name for target in devicemapper.list_targets()},
        {loop.device for loop in loops.list_loops()},
    )


def look(daemon: Daemon, others: tuple[set[str], set[str]], *, where: str) -> str:
    """What the last crash left: the victim's state. Raises AssertionError when anything is over."""
    assert daemon.ask("audit") == "", where
    assert daemon.ask("state", OTHER) == "running", where
    state = daemon.ask("state", VICTIM) if VICTIM in daemon.ask("names").split() else "none"
    assert state in ("none", "created", "stopped", "running"), where
    targets, devices = block_devices()
    extra = 2 if state == "running" else 0
    assert others[0] <= targets, where
    assert others[1] <= devices, where
    assert (len(targets), len(devices)) == (2 + extra, 2 + extra), f"{where}: {targets} {devices}"
    return state


def bring(daemon: Daemon, state: str, case: str) -> None:
    """The victim to where the case begins. What a start left is started again, and comes to a later point."""
    if case == "first" and state == "none":
        daemon.ask("reserve", VICTIM)
    elif state == "none":
        daemon.ask("create", VICTIM)
        if case == "start":
            daemon.ask("stop", VICTIM)
    elif case in ("stop", "delete") and state != "running":
        assert daemon.ask("start", VICTIM) == "running"


@pytest.mark.parametrize("case", CASES)
def test_a_daemon_killed_at_each_point(home: Path, tmp_path: Path, case: str) -> None:
    firecracker = quick_to_ask(install_fake_firecracker(tmp_path))
    operation, wanted = CASES[case]
    began = time.monotonic()
    with Daemon(home, firecracker) as daemon:
        daemon.ask("create", OTHER)
        others = block_devices()
        bring(daemon, "none", case)
        points = [point for point in daemon.points_of(operation, VICTIM) if wanted(point)]
        if operation == "start":
            daemon.ask("delete" if case == "first" else "stop", VICTIM)
    assert len(points) >= LEAST[case], points
    where = "before the first crash"
    for point in points:
        with Daemon(home, firecracker) as daemon:
            bring(daemon, look(daemon, others, where=where), case)
            daemon.dies(point, operation, VICTIM)
        where = f"{operation} killed at {point}"
    with Daemon(home, firecracker) as daemon:
        state = look(daemon, others, where=where)
        if state in ("created", "stopped"):
            assert daemon.ask("start", VICTIM) == "running"
        if state != "none":
            daemon.ask("delete", VICTIM)
        assert block_devices() == others
        daemon.ask("delete", OTHER)
        assert daemon.ask("audit") == ""
    print(f"\n{case}: {len(points)} points in {time.monotonic() - began:.0f} s: {points}")
