"""One life of a daemon's services, in a process of its own that a crash point can end with SIGKILL.

The parent (test_points.py) has everything imported and forks a child for each life, so that hundreds
of crashes fit into minutes. The child opens the services on a home (reconcile included), runs one
operation on the fake Firecracker with real taps, bridges and processes, and reports what it did.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from banger.api.requests import CreateVM, KillVM, SetVM
from banger.config.paths import resolve_paths
from banger.config.settings import Settings, VMDefaults
from banger.daemon.compose import compose
from banger.helper.validate import MONITOR_PROGRAMS
from banger.model.progress import no_progress
from banger.model.records import VMRecord
from banger.vm.service import VMService

MIB = 1 << 20
NAME = "victim"
PROGRAMS = MONITOR_PROGRAMS | {
    os.path.basename(os.path.realpath(sys.executable)),
    os.path.basename(sys.executable),
}
"""The fake is a Python script: that is the program its process runs."""
DEADLINE_S = 60.0

Operation = Callable[[VMService], Awaitable[VMRecord]]


def _only(vms: VMService) -> VMRecord:
    return vms.resolve(NAME)


async def create(vms: VMService) -> VMRecord:
    return await vms.create(CreateVM(name=NAME), no_progress)


async def start(vms: VMService) -> VMRecord:
    return await vms.start(_only(vms).id, no_progress)


async def stop(vms: VMService) -> VMRecord:
    return await vms.stop(_only(vms).id, no_progress)


async def restart(vms: VMService) -> VMRecord:
    return await vms.restart(_only(vms).id, no_progress)


async def change(vms: VMService) -> VMRecord:
    return await vms.set(_only(vms).id, SetVM(work_disk_size_bytes=96 * MIB), progress=no_progress)


async def kill(vms: VMService) -> VMRecord:
    return await vms.kill(_only(vms).id, KillVM(signal="KILL"), progress=no_progress)


async def delete(vms: VMService) -> VMRecord:
    return await vms.delete(_only(vms).id, no_progress)


OPERATIONS: dict[str, Operation] = {
    "create": create,
    "start": start,
    "stop": stop,
    "restart": restart,
    "set": change,
    "kill": kill,
    "delete": delete,
}


def settings_for(firecracker: str) -> Settings:
    return Settings(
        vmm="firecracker",
        firecracker_bin=firecracker,
        root_disk="guest-overlay",
        tap_pool_size=2,
        vm_defaults=VMDefaults(vcpu=1, memory_mib=128, disk_size=64 * MIB, system_overlay_size=64 * MIB),
    )


class Report(dict[str, object]):
    """What a life has to say: state, points passed, findings of the audit, error."""


async def live(home: Path, firecracker: str, operation: str, *, crash_at: int) -> Report:
    """crash_at: the number of the crash point (from 1) at which the process ends; 0: none."""
    passed: list[str] = []
    armed = False

    def crash_point(point: str) -> None:
        if not armed:
            return
        passed.append(point)
        if len(passed) == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    paths = resolve_paths({"BANGER_HOME": str(home)})
    os.makedirs(paths.state_dir, mode=0o700, exist_ok=True)
    services = await compose(paths, settings_for(firecracker), crash_point=crash_point, programs=PROGRAMS)
    vms = services.vms
    assert isinstance(vms, VMService)
    report = Report(error="")
    try:
        armed = True
        if operation in OPERATIONS:
            try:
                await OPERATIONS[operation](vms)
            except Exception as error:
                report["error"] = f"{type(error).__name__}: {error}"
        armed = False
        record = next((vm for vm in vms.list() if vm.name == NAME), None)
        report["state"] = record.state.value if record else "none"
        report["last_error"] = record.runtime.last_error if record else ""
        report["alive"] = vms.is_alive(record) if record else False
        report["findings"] = [f"{f.kind} {f.name}: {f.problem}" for f in await vms.audit()]
        report["others"] = sorted(vm.name for vm in vms.list() if vm.name != NAME and vms.is_alive(vm))
        report["points"] = passed
    finally:
        await services.close()
    return report


def fork_life(home: Path, firecracker: str, operation: str, *, crash_at: int = 0) -> Report | None:
    """Run one life in a child. None: it ended at the crash point. Raises AssertionError for any other end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(writer, home, firecracker, operation=operation, crash_at=crash_at)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and crash_at:
        return None
    assert code == 0, f"{operation} ended with {code}: {said.decode('utf-8', 'replace')}"
    return Report(json.loads(said))


def _child(writer: int, home: Path, firecracker: str, *, operation: str, crash_at: int) -> NoReturn:
    code = 1
    try:
        report = asyncio.run(
            asyncio.wait_for(live(home, firecracker, operation, crash_at=crash_at), DEADLINE_S)
        )
        os.write(writer, json.dumps(report).encode())
        code = 0
    except BaseException:
        os.write(writer, traceback.format_exc().encode()[-60_000:])
    finally:
        os._exit(code)
