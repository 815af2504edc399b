"""Walks over the points of one operation: a life for each point, and what must hold after it.

A life begins with what the one before left, so that recovery and the next crash cost one fork. Whatever
happens, the bystander (a VM that runs all along) must not notice.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import msgspec

from banger.config.instance import instance_id
from banger.config.settings import Settings
from banger.helper import ruleset
from banger.system import loops
from banger.system.kvm import kvm_status
from banger.vm.machine import MACHINE_STEPS
from banger.vm.start import BEFORE_DISK, HOST_STEPS
from tests.artifacts import artifacts
from tests.crash.driver import OPEN, RAISED, How, Life, Look, fork_life, occurrences
from tests.crash.operations import AFTER, BEFORE, OPERATIONS
from tests.fakes.installed import install_fake_firecracker

BRIDGE = Settings().bridge_name
STEPS = [
    step
    for entry in (*BEFORE_DISK, *HOST_STEPS, *MACHINE_STEPS)
    for step in (entry if isinstance(entry, tuple) else (entry,))
]
PUT_BACK = {step.id for entry in BEFORE_DISK for step in (entry if isinstance(entry, tuple) else (entry,))}
"""Steps whose failure leaves the state as it was (SPEC §2)."""

Points = list[tuple[str, int]]


class Bystander(msgspec.Struct, frozen=True, kw_only=True):
    """What would have changed, had it noticed anything."""

    row: str
    vm_dir: str
    handles: bytes
    pid: int
    start_time: int
    tap: str
    link: str  # as `ip` shows it

    @classmethod
    def of(cls, row: str) -> Bystander:
        vm_dir = json.loads(row)["runtime"]["vm_dir"]
        handles = Path(vm_dir, "handles.json").read_bytes()
        recorded = json.loads(handles)
        (monitor,) = recorded["processes"]
        pid = monitor["pid"]
        tap = recorded["tap_device"]
        return cls(
            row=row,
            vm_dir=vm_dir,
            handles=handles,
            pid=pid,
            start_time=running_since(pid),
            tap=tap,
            link=shown_link(tap),
        )


def running_since(pid: int) -> int:
    """Start time in clock ticks since boot; 0 when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def shown_link(name: str) -> str:
    argv = ["ip", "-json", "-details", "link", "show", "dev", name]
    return subprocess.run(argv, capture_output=True, check=True, timeout=60, text=True).stdout


class Host:
    """A home with the default image and the fake monitor, in this process's network namespace."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        artifacts().seed_home(self.home)
        self.firecracker = install_fake_firecracker(folder)
        self.bystander: Bystander | None = None
        # kept per process: the lives inherit both, and need not take half of their time for them
        asyncio.run(kvm_status())
        importlib.import_module("pyroute2")

    def add_bystander(self) -> None:
        looks, _ = fork_life(self.home, self.firecracker, Life(recover=False, armed="bystander"))
        assert looks[-1].error == "", looks
        self.bystander = Bystander.of(looks[-1].bystander)

    def live(self, life: Life) -> tuple[dict[str, Look], bool]:
        """What the life saw, by what it did (the last where it did it twice), and whether it was killed."""
        looks, killed = fork_life(self.home, self.firecracker, life)
        assert self.bystander is not None
        for look in looks:
            assert look.bystander == self.bystander.row, life
            assert look.bystander_healthy, life
            if look.did in ("armed", "again"):
                check_worked(life, look)
            elif look.did in OPERATIONS:
                assert look.error == "", f"{life}: {look}"
        assert running_since(self.bystander.pid) == self.bystander.start_time, life
        assert Path(self.bystander.vm_dir, "handles.json").read_bytes() == self.bystander.handles, life
        return {look.did: look for look in looks}, killed

    def check_recovered(self, looks: dict[str, Look], where: str, *, folders: bool = False) -> None:
        """What the life before left is consistent, usable, and goes without a rest. folders: of VMs that the
        store does not know stay until `host audit --fix`."""
        assert self.bystander is not None
        found = looks["found"]
        left = [f for f in found.findings if not (folders and f.startswith("folder "))]
        assert left == [], where
        assert found.state in ("none", "created", "stopped", "running", "error"), where
        assert found.alive is found.healthy is (found.state == "running"), f"{where}: {found}"
        gone = looks["gone"]
        assert (gone.error, gone.state, gone.findings) == ("", "none", ()), f"{where}: {gone}"
        assert gone.folders == (os.path.basename(self.bystander.vm_dir),), f"{where}: {gone}"
        idle = [name for name in gone.links if name.startswith("tap-pool-") and name != self.bystander.tap]
        assert set(gone.links) - set(idle) == {BRIDGE, self.bystander.tap}, f"{where}: {gone}"
        assert len(idle) <= 2, f"{where}: {gone}"

    def check_end(self, where: str) -> None:
        """After a life that ended in order: nothing is on the host but the bystander's, by other eyes."""
        assert self.bystander is not None
        assert {name for _, name in socket.if_nameindex()} == {"lo", BRIDGE, self.bystander.tap}, where
        assert shown_link(self.bystander.tap) == self.bystander.link, where
        assert processes_below(self.home) == [self.bystander.pid], where
        assert loops_below(self.home) == [], where
        instance = instance_id(str(self.home / "state"))
        shown = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True, timeout=60)
        assert re.findall(r"^table (.*) {", shown.stdout.decode(), re.MULTILINE) == [
            " ".join(table) for table in ruleset.tables(instance)
        ], where
        assert set(re.findall(r'"(tap-[a-z0-9-]+)"', shown.stdout.decode())) == {self.bystander.tap}, where

    def clean(self) -> None:
        for pid in processes_below(self.home):
            os.kill(pid, signal.SIGKILL)
        for device, backing in loops_below(self.home):
            loops.detach(device, backing_file=backing)


def processes_below(home: Path) -> list[int]:
    """Whose working directory is a VM's folder, or was one."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            cwd = os.readlink(f"/proc/{name}/cwd")
        except OSError:
            continue
        if cwd.startswith(f"{home}/") and running_since(int(name)):
            found.append(int(name))
    return found


def loops_below(home: Path) -> list[tuple[str, str]]:
    found = loops.list_loops()
    return [(loop.device, loop.backing_file) for loop in found if loop.backing_file.startswith(f"{home}/")]


def walk(host: Host, operation: str, how: How) -> Points:
    """A life for each point of the operation that ends there, or runs into an error there."""
    first, folders = BEFORE[operation], operation == "repair"
    looks, _ = host.live(Life(first=first, armed=operation))
    points = occurrences(looks["armed"].points)
    where = f"{operation}, undisturbed"
    for number, (point, nth) in enumerate(points):
        error = RAISED[number % len(RAISED)] if how is How.RAISE else 0
        life = Life(
            first=first, armed=operation, how=how, point=point, nth=nth, error=error, again=how is How.RAISE
        )
        looks, killed = host.live(life)
        host.check_recovered(looks, where, folders=folders)
        where = f"{operation}, {how} at {point} ({nth}) {os.strerror(error) if error else ''}"
        assert killed if how is How.KILL else looks["armed"].reached, where
    looks, _ = host.live(Life())
    host.check_recovered(looks, where, folders=folders)
    host.check_end(where)
    return points


def walk_reconcile(host: Host, how: How) -> Points:
    """The same for a daemon's start that has much to put right: a start cut off in the middle, and what
    `plant` leaves. Without a tap pool, so that there are as many points each time."""
    leftovers = Life(first=("plant",), armed="create", how=How.KILL, point="do:agent:before", pool=0)

    def leave(where: str) -> None:
        looks, killed = host.live(leftovers)
        host.check_recovered(looks, where, folders=True)
        assert killed

    leave("before")
    looks, _ = host.live(Life(recover=False, armed=OPEN, pool=0))
    assert not [f for f in looks[OPEN].findings if not f.startswith("folder ")], looks
    points = occurrences(looks[OPEN].points)
    where = "reconcile, undisturbed"
    for number, (point, nth) in enumerate(points):
        leave(where)
        error = RAISED[number % len(RAISED)] if how is How.RAISE else 0
        life = Life(recover=False, armed=OPEN, how=how, point=point, nth=nth, error=error, pool=0)
        looks, killed = host.live(life)
        where = f"reconcile, {how} at {point} ({nth}) {os.strerror(error) if error else ''}"
        assert killed if how is How.KILL else looks[OPEN].reached, where
    looks, _ = host.live(Life(pool=0))
    host.check_recovered(looks, where, folders=True)
    host.check_end(where)
    return points


def check_worked(life: Life, look: Look) -> None:
    """What an operation says and leaves when it got through, or failed where the life wanted it to."""
    operation, where = life.armed, f"{life}: {look}"
    if look.did == "armed" and look.reached and life.how is How.RAISE:
        check_failed(life, look)
    else:
        assert (look.error, look.state, look.findings) == ("", AFTER[operation], ()), where
    assert look.healthy is (look.state == "running"), where


def check_failed(life: Life, look: Look) -> None:
    """SPEC §2: the error names step and cause; a start that fails before it made a disk puts the state back,
    any other failure is `error` with last_error; a start that failed leaves nothing but its files."""
    kind, step, _ = life.point.split(":")
    where = f"{life}: {look}"
    why = os.strerror(life.error)
    assert why in look.error, where
    assert step in look.error.replace(" ", "_"), where
    assert step in look.steps, where
    state = state_after_failure(life.armed, life.point)
    assert look.state == state, where
    assert (why in look.last_error) if state == "error" else look.last_error == "", where
    if kind not in ("undo", "fix"):
        assert look.findings == (), where
        assert look.handles is (state == "running"), where


def state_after_failure(operation: str, point: str) -> str:
    kind, step, _ = point.split(":")
    if kind == "do" and step in PUT_BACK:
        return "none" if operation == "create" else "stopped"
    if kind in ("do", "undo"):
        return "error"
    return {"create": "none", **dict.fromkeys(("set", "publish", "unpublish"), "running"), "fix": "none"}.get(
        kind, "none" if point == "delete:row:after" else "error"
    )
