"""Every crash point of every operation: the daemon dies there, comes back, and nothing is lost or left.

The points come from the step list by construction; those of reconcile's own repairs are not armed yet.
The report at the end lists how many there were. Real bridges, taps, processes and files; the fake
Firecracker as the monitor.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.system.kvm import kvm_status
from tests.artifacts import artifacts
from tests.crash.driver import OPERATIONS, Report, fork_life
from tests.fakes.installed import install_fake_firecracker

pytestmark = [pytest.mark.host, pytest.mark.slow]

CLONE_NEWNET = 0x40000000
BEFORE: dict[str, tuple[str, ...]] = {
    "create": (),
    "start": ("create", "stop"),
    "stop": ("create",),
    "restart": ("create",),
    "set": ("create",),
    "kill": ("create",),
    "delete": ("create",),
}
"""What brings the VM where the operation begins."""


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


class Host:
    """A home with the default image and the fake monitor."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        artifacts().seed_home(self.home)
        self.firecracker = install_fake_firecracker(folder)
        asyncio.run(kvm_status())  # kept per process: the lives inherit it, and need not probe again

    def life(self, operation: str, *, crash_at: int = 0) -> Report | None:
        return fork_life(self.home, self.firecracker, operation, crash_at=crash_at)

    def whole(self, operation: str) -> Report:
        report = self.life(operation)
        assert report is not None
        return report

    def links(self) -> list[str]:
        listed = subprocess.run(["ip", "-json", "link"], capture_output=True, check=True, timeout=20).stdout
        return [link["ifname"] for link in json.loads(listed) if link["ifname"] != "lo"]


@pytest.fixture(scope="module")
def host(netns: None, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, list[str]]]:
    """Points by operation; printed as the report."""
    points: dict[str, list[str]] = {}
    yield points
    total = sum(len(found) for found in points.values())
    print(f"\ncrash points: {total}, " + ", ".join(f"{name} {len(found)}" for name, found in points.items()))


def reset(host: Host) -> None:
    if host.whole("look")["state"] != "none":
        report = host.whole("delete")
        assert report["error"] == "", report
    assert host.links() == []


@pytest.mark.limit(1200)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_point(host: Host, counted: dict[str, list[str]], operation: str) -> None:
    """A crash at each point in turn, until an operation gets through without reaching the next one."""
    seen: list[str] = []
    crash_at = 1
    while True:
        reset(host)
        for earlier in BEFORE[operation]:
            assert host.whole(earlier)["error"] == ""
        report = host.life(operation, crash_at=crash_at)
        if report is not None:
            points = report["points"]
            assert isinstance(points, list)
            seen = [str(point) for point in points]
            assert report["error"] == "", report
            break
        after = host.whole("look")
        where = f"{operation}, crash at point {crash_at}: {after}"
        assert after["findings"] == [], where
        assert after["state"] in ("none", "created", "stopped", "running"), where
        assert after["alive"] is (after["state"] == "running"), where
        if after["state"] in ("created", "stopped"):
            again = host.whole("start")
            assert (again["error"], again["state"]) == ("", "running"), f"{where}\n{again}"
        gone = host.whole("delete") if after["state"] != "none" else after
        assert gone["state"] == "none", where
        assert host.links() == [], where
        assert not list((host.home / "state/vms").glob("*")), where
        crash_at += 1
    assert len(seen) == crash_at - 1
    assert seen
    counted[operation] = seen


def test_every_step_was_a_point(counted: dict[str, list[str]]) -> None:
    """A step that is new and not covered fails here."""
    from banger.vm.machine import MACHINE_STEPS
    from banger.vm.start import BEFORE_DISK, HOST_STEPS

    entries = [*BEFORE_DISK, *HOST_STEPS, *MACHINE_STEPS]
    steps = [step for entry in entries for step in (entry if isinstance(entry, tuple) else (entry,))]
    points = {point for found in counted.values() for point in found}
    for step in steps:
        for when in ("before", "after"):
            assert f"do:{step.id}:{when}" in points
            assert f"undo:{step.id}:{when}" in points
