"""One life of a daemon's services, in a process of its own that a crash point can end with SIGKILL.

The parent has everything imported and forks a child for each life, so that hundreds of crashes fit into
minutes. The child holds the daemon's lock, opens the services on a home (reconcile included), looks what
the life before left and clears it away, brings a VM where the operation under test begins, and runs that
with one crash point armed: to kill the process there, or to raise what the system could. What it saw
goes up a pipe as it goes, a line of JSON for each Look.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from banger.config.paths import resolve_paths
from banger.config.settings import Settings, VMDefaults
from banger.daemon.compose import compose
from banger.daemon.listener import StateLock
from banger.errors import BangerError
from banger.helper.validate import MONITOR_PROGRAMS
from banger.model.deadlines import Deadlines
from banger.model.records import VMRecord
from banger.model.states import VMState
from banger.system import run
from banger.vm.service import VMService
from tests import leaks
from tests.crash.operations import BACK, BYSTANDER, NAME, OPERATIONS, RepairFailed

MIB = 1 << 20
PROGRAMS = MONITOR_PROGRAMS | {
    os.path.basename(os.path.realpath(sys.executable)),
    os.path.basename(sys.executable),
}
"""The fake is a Python script: that is the program its process runs."""
DEADLINE_S = 300.0
PATIENT = Deadlines(
    agent_s=300.0,
    emulated_silence_s=300.0,
    emulated_at_most_s=600.0,
    agent_answer_s=120.0,
    stop_silence_s=120.0,
    stop_at_most_s=300.0,
    kill_s=120.0,
    killed_s=120.0,
    cleanup_s=120.0,
    keep_answer_s=60.0,
    monitor_up_s=120.0,
    monitor_call_s=120.0,
)
"""What is to come is waited for long: the fake is a Python program, and this machine may be busy."""
STARTABLE = (VMState.CREATED, VMState.STOPPED, VMState.ERROR)
OPEN = "open"
"""Armed: from before the services are opened, so that reconcile's own points count."""
RAISED = (errno.ENOSPC, errno.EBUSY, errno.EPERM)


class How(StrEnum):
    COUNT = "count"
    KILL = "kill"
    RAISE = "raise"


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What one child does, in this order."""

    recover: bool = True  # look at what the life before left; start it where it can be; delete it
    first: tuple[str, ...] = ()  # operations that bring the VM where the armed one begins
    armed: str = ""  # an operation, OPEN, or nothing
    how: How = How.COUNT
    point: str = ""
    nth: int = 1  # of the points of that name
    error: int = 0  # errno to raise
    again: bool = False  # after a raise: repeat it, go back, and run into the same error once more
    pool: int = 2  # taps kept idle
    programs: bool = False  # each program that is run is a point, "run:<name>"


class Look(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The VM under test, the bystander and the host after something was done."""

    did: str
    error: str = ""
    steps: tuple[str, ...] = ()  # that the error names as data
    state: str = "none"
    last_error: str = ""
    alive: bool = False
    healthy: bool = False
    handles: bool = False  # the scratch file is there
    findings: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    bystander: str = ""  # its row
    bystander_healthy: bool = False
    points: tuple[str, ...] = ()
    reached: bool = False


Say = Callable[[Look], None]


def settings_for(firecracker: str, *, pool: int = 2) -> Settings:
    return Settings(
        vmm="firecracker",
        firecracker_bin=firecracker,
        root_disk="guest-overlay",
        tap_pool_size=pool,
        stats_poll_interval_s=0.0,
        metrics_poll_interval_s=0.0,
        vm_defaults=VMDefaults(vcpu=1, memory_mib=128, disk_size=64 * MIB, system_overlay_size=64 * MIB),
    )


class Hook:
    """The crash point: counts while armed, and does at one what the life says."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._armed = False
        self._met: Counter[str] = Counter()
        self.passed: list[str] = []
        self.reached = False

    def arm(self) -> None:
        self._armed, self.reached = True, False
        self._met.clear()
        self.passed.clear()

    def disarm(self) -> None:
        self._armed = False

    def __call__(self, point: str) -> None:
        if not self._armed:
            return
        self.passed.append(point)
        self._met[point] += 1
        life = self._life
        if point != life.point or self._met[point] != life.nth:
            return
        self.reached = True
        if life.how is How.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if life.how is How.RAISE:
            raise OSError(life.error, os.strerror(life.error))


def point_at_programs(hook: Hook) -> None:
    """In this process, which is a life's own."""
    real = run._run

    async def pointed(argv: Sequence[str], **how: Any) -> run.Completed:
        hook(f"run:{os.path.basename(argv[0])}")
        return await real(argv, **how)

    run._run = pointed


class Child:
    def __init__(self, vms: VMService, hook: Hook, *, home: Path, say: Say) -> None:
        self._vms = vms
        self._hook = hook
        self._home = home
        self._say = say

    async def live(self, life: Life) -> None:
        if life.armed == OPEN:
            self._say(await self.look(OPEN))
        if life.recover:
            await self._recover()
        for operation in life.first:
            self._say(await self.do(operation))
        if life.armed not in OPERATIONS:
            return
        await self._run(life.armed)
        if life.again and self._hook.reached:
            await self._repeat(life.armed)
            for operation in BACK[life.armed]:
                self._say(await self.do(operation))
            await self._run(life.armed)

    async def look(self, did: str, error: Exception | None = None) -> Look:
        vms = self._vms
        leaks.wait_for_loops(self._home)
        look = Look(did=did, points=tuple(self._hook.passed), reached=self._hook.reached)
        if error is not None:
            look.error = error.brief if isinstance(error, BangerError) else f"{type(error).__name__}: {error}"
            look.steps = named_steps(error)
        record = self._record(NAME)
        if record is not None:
            look.state, look.last_error = record.state.value, record.runtime.last_error
            look.alive = vms.is_alive(record)
            look.healthy = look.alive and (await vms.health(record.id)).healthy
            look.handles = os.path.exists(f"{record.runtime.vm_dir}/handles.json")
        bystander = self._record(BYSTANDER)
        if bystander is not None:
            look.bystander = msgspec.json.encode(bystander).decode()
            look.bystander_healthy = (await vms.health(bystander.id)).healthy
        look.findings = tuple(f"{f.kind} {f.name}: {f.problem}" for f in await vms.audit())
        look.links = tuple(name for _, name in socket.if_nameindex() if name != "lo")
        return look

    async def _recover(self) -> None:
        found = await self.look("found")
        self._say(found)
        if found.findings:
            self._say(await self.do("repair"))
        record = self._record(NAME)
        if record is not None and record.state in STARTABLE:
            self._say(await self.do("start"))
        self._say(await self._clear("gone"))

    async def _clear(self, did: str) -> Look:
        """Until nothing of the life before is there."""
        if self._record(NAME) is not None:
            look = await self.do("delete")
            look.did = did
        else:
            look = await self.look(did)
        if self._record(BYSTANDER) is not None:
            folder = os.path.dirname(self._vms.resolve(BYSTANDER).runtime.vm_dir)
            look.folders = tuple(os.listdir(folder))
        return look

    async def _run(self, operation: str) -> None:
        self._hook.arm()
        failed = await attempt(self._vms, operation)
        self._hook.disarm()
        self._say(await self.look("armed", failed))

    async def _repeat(self, operation: str) -> None:
        """The same once more, unarmed. A VM that is there is started, one that is gone needs no deletion."""
        there = self._record(NAME) is not None
        if operation == "delete" and not there:
            return
        look = await self.do("start" if operation == "create" and there else operation)
        look.did = "again"
        self._say(look)

    async def do(self, operation: str) -> Look:
        return await self.look(operation, await attempt(self._vms, operation))

    def _record(self, name: str) -> VMRecord | None:
        return next((vm for vm in self._vms.list() if vm.name == name), None)


async def attempt(vms: VMService, operation: str) -> Exception | None:
    try:
        await OPERATIONS[operation](vms)
    except Exception as error:
        logging.getLogger(__name__).debug("%s failed", operation, exc_info=True)
        return error
    return None


def named_steps(error: Exception) -> tuple[str, ...]:
    if isinstance(error, RepairFailed):
        return error.fixes
    if isinstance(error, BangerError):
        data = error.data or {}
        return (str(data["step"]),) if "step" in data else tuple(str(step) for step in data.get("steps", ()))
    return ()


async def live(home: Path, firecracker: str, life: Life, *, say: Say) -> None:
    paths = resolve_paths({"BANGER_HOME": str(home)})
    os.makedirs(paths.state_dir, mode=0o700, exist_ok=True)
    lock = StateLock(paths.state_dir)
    await lock.acquire()
    hook = Hook(life)
    if life.armed == OPEN:
        hook.arm()
    if life.programs:
        point_at_programs(hook)
    settings = settings_for(firecracker, pool=life.pool)
    services = await compose(paths, settings, crash_point=hook, programs=PROGRAMS, deadlines=PATIENT)
    hook.disarm()
    try:
        assert isinstance(services.vms, VMService)
        await Child(services.vms, hook, home=home, say=say).live(life)
    finally:
        await services.close()
        lock.release()


def fork_life(home: Path, firecracker: str, life: Life) -> tuple[list[Look], bool]:
    """Run one life in a child: what it saw, and whether it was killed at its point. Raises AssertionError
    for any other end than these two."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(writer, home, firecracker, life=life)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    killed = code == -signal.SIGKILL and life.how is How.KILL
    assert killed or code == 0, f"{life} ended with {code}: {said.decode('utf-8', 'replace')}"
    return [msgspec.json.decode(line, type=Look) for line in said.splitlines()], killed


def _child(writer: int, home: Path, firecracker: str, *, life: Life) -> NoReturn:
    code = 1

    def say(look: Look) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, msgspec.json.encode(look) + b"\n")

    try:
        work = live(home, firecracker, life, say=say)
        asyncio.run(asyncio.wait_for(work, DEADLINE_S))
        code = 0
    except BaseException:
        os.write(writer, traceback.format_exc().encode()[-60_000:])
    finally:
        os._exit(code)


def occurrences(points: Sequence[str]) -> list[tuple[str, int]]:
    """Each point with which one of its name it is."""
    met: Counter[str] = Counter()
    numbered = []
    for point in points:
        met[point] += 1
        numbered.append((point, met[point]))
    return numbered
