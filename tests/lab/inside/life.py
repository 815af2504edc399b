"""A daemon's services in a child process that can be killed: the lab's own, on dm-snapshot root disks.

The parent has everything imported and forks: Python takes long to start in the lab. Requests and replies
are JSON lines on a socket pair. A `Daemon` that is killed (SIGKILL), or kills itself at a crash point, leaves
what a killed daemon leaves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import msgspec

from banger.api.requests import CreateVM
from banger.config.paths import resolve_paths
from banger.config.settings import Settings, VMDefaults
from banger.daemon.compose import compose
from banger.guest.agent import AgentClient
from banger.guest.stream import Exited, Stdout
from banger.helper.validate import MONITOR_PROGRAMS
from banger.model.deadlines import Deadlines
from banger.model.progress import no_progress
from banger.vm.service import VMService
from tests.lab.inside.crashes import CrashPoints, Point, watch_block_devices

MIB = 1 << 20
ROOT_BYTES = 2 << 30
PROGRAMS = MONITOR_PROGRAMS | {
    os.path.basename(os.path.realpath(sys.executable)),
    os.path.basename(sys.executable),
}
"""The fake Firecracker is a Python script: that is the program its process runs."""
REPLY_TIMEOUT_S = 240.0
PATIENT = Deadlines(
    agent_s=200.0, kill_s=120.0, killed_s=120.0, cleanup_s=120.0, monitor_up_s=120.0, monitor_call_s=120.0
)
"""The fake is a Python program: where nothing else is done it takes a second to start in the lab."""


def settings_for(firecracker: str) -> Settings:
    return Settings(
        vmm="firecracker",
        firecracker_bin=firecracker,
        root_disk="dm-snapshot",
        tap_pool_size=1,
        vm_defaults=VMDefaults(vcpu=1, memory_mib=256, disk_size=64 * MIB, system_overlay_size=ROOT_BYTES),
    )


class Daemon:
    """`with Daemon(home, firecracker) as daemon`: ends it in order, whatever happens."""

    def __init__(self, home: Path, firecracker: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _serve(theirs, home, firecracker)
        theirs.close()
        self._replies = self._socket.makefile("r", encoding="utf-8")
        self._wait()

    def ask(self, what: str, *words: str) -> str:
        """One of the words of `_answer`, and what it is about. Raises AssertionError."""
        self._socket.sendall(json.dumps([what, *words]).encode() + b"\n")
        return self._wait()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def dies(self, point: Point, *request: str) -> None:
        """It kills itself when the request comes to the point. Raises AssertionError when it does not."""
        self.ask("arm", point[0], str(point[1]))
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        said = self._replies.readline()
        assert not said, f"{request} went past {point}: {said}"

    def points_of(self, *request: str) -> list[Point]:
        """Serve the request, and say which crash points it passed."""
        self.ask("count")
        self.ask(*request)
        return [(name, nth) for name, nth in json.loads(self.ask("points"))]

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        os.waitpid(self.pid, 0)
        self._replies.close()
        self._socket.close()

    def _wait(self) -> str:
        line = self._replies.readline()
        assert line, "the daemon has ended"
        reply = json.loads(line)
        assert "error" not in reply, reply["error"]
        return str(reply["said"])


def _serve(control: socket.socket, home: Path, firecracker: str) -> NoReturn:
    code = 1
    try:
        asyncio.run(_live(control, home, firecracker))
        code = 0
    except BaseException:
        _reply(control, error=traceback.format_exc())
    finally:
        os._exit(code)


async def _live(control: socket.socket, home: Path, firecracker: str) -> None:
    crash = CrashPoints()
    watch_block_devices(crash)
    services = await compose(
        resolve_paths({"BANGER_HOME": str(home)}),
        settings_for(firecracker),
        crash_point=crash,
        programs=PROGRAMS,
        deadlines=PATIENT,
    )
    vms = services.vms
    assert isinstance(vms, VMService)
    control.setblocking(False)
    reader, _writer = await asyncio.open_connection(sock=control.dup())
    _reply(control, said="ready")
    try:
        while line := await reader.readline():
            try:
                _reply(control, said=await _answer(vms, crash, *json.loads(line)))
            except Exception:
                _reply(control, error=traceback.format_exc())
    finally:
        _writer.close()
        await services.close()


def _reply(control: socket.socket, **fields: str) -> None:
    control.setblocking(True)
    control.sendall(json.dumps(fields).encode() + b"\n")
    control.setblocking(False)


async def _answer(vms: VMService, crash: CrashPoints, what: str, name: str = "", *words: str) -> str:
    if what in ("count", "points", "arm"):
        return crash.answer(what, name, *words)
    if what == "names":
        return " ".join(record.name for record in vms.list())
    if what == "audit":
        return "\n".join(f"{f.kind} {f.name}: {f.problem}" for f in await vms.audit())
    if what in ("create", "reserve"):
        request = CreateVM(name=name, init="agent", start=what == "create")
        return (await vms.create(request, no_progress)).id
    record = vms.resolve(name)
    match what:
        case "start":
            return (await vms.start(record.id, no_progress)).state.value
        case "stop":
            return (await vms.stop(record.id, no_progress)).state.value
        case "delete":
            return (await vms.delete(record.id, no_progress)).name
        case "state":
            return record.state.value
        case "runtime":
            return msgspec.json.encode(record.runtime).decode()
        case "stats":
            return await _warnings(vms.stats(record.id))
        case "exec":
            return await _exec(record.runtime.vm_dir, words)
        case _:
            raise ValueError(what)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


async def _warnings(work: Awaitable[object]) -> str:
    """What the log says while it is done."""
    handler = _Listener()
    logging.getLogger("banger").addHandler(handler)
    try:
        await work
    finally:
        logging.getLogger("banger").removeHandler(handler)
    return "\n".join(handler.said)


async def _exec(vm_dir: str, argv: tuple[str, ...]) -> str:
    said = b""
    async with AgentClient(vm_dir, timeout_s=60) as agent, await agent.exec(argv) as stream:
        async for event in stream:
            if isinstance(event, Stdout):
                said += event.data
            elif isinstance(event, Exited):
                assert event.status == 0, f"{argv} exits with {event.status}"
    return said.decode()
