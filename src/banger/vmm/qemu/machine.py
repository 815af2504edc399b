"""One QEMU microvm and its vsock bridge: two processes that live and die together.

QEMU is launched whole and stopped (`-S`); `start` lets it run. The bridge gives the VM's folder the same
v.sock as Firecracker would; when either process ends, the machine is over and the other is ended too.
After a crash of the daemon both run on; `Monitor.adopt` makes a new object for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from banger.model.records import ProcessIdentity
from banger.system.exits import ExitWatch
from banger.system.listeners import listens_on
from banger.vmm.errors import MonitorError
from banger.vmm.protocol import (
    API_SOCKET,
    METRICS_FILE,
    MONITOR_LOG,
    VSOCK_SOCKET,
    Exit,
    Launcher,
    MachineSpec,
    MonitorInfo,
)
from banger.vmm.qemu.command import VHOST_USER_SOCKET, bridge_argv, qemu_argv
from banger.vmm.qemu.qmp import Qmp, ShutdownData

LISTEN_DEADLINE_S = 10.0
"""From a process's start to its listening socket: normally 5 ms for the bridge, 60 to 300 for QEMU."""
END_DEADLINE_S = 5.0
_T = TypeVar("_T")
_TAIL = 4096
_REASONS = {
    "guest-shutdown": "shutdown",
    "guest-reset": "reset",
    "guest-panic": "failed",
    "host-signal": "killed",
    "host-qmp-quit": "killed",
    "host-error": "failed",
}


class QemuMachine:
    def __init__(self, info: MonitorInfo, vm_dir: str, *, processes: tuple[ProcessIdentity, ...]) -> None:
        self._info = info
        self._vm_dir = vm_dir
        self._processes = processes
        self._qmp = Qmp(vm_dir)
        self._watches = [ExitWatch(process) for process in processes]

    @classmethod
    async def launch(
        cls,
        info: MonitorInfo,
        spec: MachineSpec,
        *,
        launcher: Launcher,
        bridge: str,
        kvm: bool,
        tsc_khz: int,
    ) -> QemuMachine:
        """bridge: path of vhost-device-vsock."""
        for name in (API_SOCKET, VSOCK_SOCKET, VHOST_USER_SOCKET, MONITOR_LOG, METRICS_FILE):
            Path(spec.vm_dir, name).unlink(missing_ok=True)

        async def start(argv: list[str], role: str) -> ProcessIdentity:
            return await launcher.launch(
                argv, role=role, vm_id=spec.vm_id, vm_dir=spec.vm_dir, stdout=MONITOR_LOG
            )

        vsock = await start(bridge_argv(bridge, spec), "vsock")
        processes: tuple[ProcessIdentity, ...] = (vsock,)
        try:
            await _until_listening(spec.vm_dir, vsock)
            monitor = await start(qemu_argv(info.path, spec, kvm=kvm, tsc_khz=tsc_khz), "monitor")
            processes = (monitor, vsock)
            machine = cls(info, spec.vm_dir, processes=processes)
            try:
                await machine._connect()
            except BaseException:
                await machine.close()
                raise
        except BaseException:
            # the caller learns of no processes, so what was started here is ended here
            for process in processes:
                await _end(process)
            raise
        return machine

    @property
    def processes(self) -> tuple[ProcessIdentity, ...]:
        return self._processes

    async def configure(self, spec: MachineSpec) -> None:
        """All is on the command line; this makes sure that QEMU took it and waits."""
        status = await self._call(self._qmp.status)
        if status != "prelaunch":
            raise MonitorError(f"QEMU is {status} before it was started", call="query-status")

    async def start(self) -> None:
        await self._execute("cont")

    async def pause(self) -> None:
        await self._execute("stop")

    async def resume(self) -> None:
        await self._execute("cont")

    async def ctrl_alt_del(self) -> None:
        await self._qmp.execute(
            "send-key", {"keys": [{"type": "qcode", "data": k} for k in ("ctrl", "alt", "delete")]}
        )

    async def flush_metrics(self) -> None:
        """QEMU keeps no metrics file; how much each disk moved is written in its place."""
        stats = await self._execute("query-blockstats")
        partial = Path(self._vm_dir, f"{METRICS_FILE}.new")
        await asyncio.to_thread(partial.write_bytes, b'{"blockstats":' + stats + b"}\n")
        partial.replace(Path(self._vm_dir, METRICS_FILE))

    async def exited(self) -> Exit:
        """When the first of the processes ends, the other is ended; returns once both are gone."""
        waits = [asyncio.ensure_future(watch.wait()) for watch in self._watches]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            bridge_first = not waits[0].done()
            if waits[0].done():
                await self._qmp.drain()
            for process in self._processes:
                await _end(process)
            await asyncio.wait(waits, timeout=END_DEADLINE_S)
            status = waits[0].result() if waits[0].done() else None
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if bridge_first:
            return Exit(status=status, reason="failed")
        return exit_of(status, self._qmp.shutdown)

    async def close(self) -> None:
        await self._qmp.close()
        for watch in self._watches:
            watch.close()

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> bytes:
        return await self._call(lambda: self._qmp.execute(command, arguments))

    async def _call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await call()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise MonitorError(f"QEMU's control socket does not answer: {error.strerror}") from None

    async def _connect(self) -> None:
        """Until QMP greets, or a process ends. QEMU binds and listens in one go early in its start,
        so connect() is tried again after 2 ms, growing to 5."""
        ended = [asyncio.ensure_future(watch.wait()) for watch in self._watches]
        pause_s = 0.002
        try:
            async with asyncio.timeout(LISTEN_DEADLINE_S):
                while True:
                    try:
                        await self._qmp.connect()
                        return
                    except (FileNotFoundError, ConnectionRefusedError):
                        done, _ = await asyncio.wait(
                            ended, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
                        )
                        pause_s = min(pause_s * 1.5, 0.005)
                    except MonitorError:
                        # it may have opened the socket and then refused its options
                        done, _ = await asyncio.wait(ended, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                        if not done:
                            raise
                    if done:
                        raise _early_end(self._vm_dir, "QEMU" if ended[0] in done else "the vsock bridge")
        except TimeoutError:
            raise MonitorError(
                f"QEMU did not answer within {LISTEN_DEADLINE_S:g} s of its start",
                details=_tail_of(f"{self._vm_dir}/{MONITOR_LOG}"),
            ) from None
        finally:
            for wait in ended:
                wait.cancel()
            await asyncio.gather(*ended, return_exceptions=True)


def exit_of(status: int | None, shutdown: ShutdownData | None) -> Exit:
    """QEMU says itself why it ends; else its status must do. Both guest reset and shutdown exit with 0."""
    if shutdown is not None and shutdown.reason in _REASONS:
        return Exit(status=status, reason=_REASONS[shutdown.reason])
    if status is None:
        return Exit(status=None, reason="unknown")
    if status == 0:
        return Exit(status=0, reason="shutdown")
    return Exit(status=status, reason="killed" if status in (-1, -2, -3, -9, -15) else "failed")


async def _until_listening(vm_dir: str, process: ProcessIdentity) -> None:
    """The bridge serves one connection, QEMU's: look at its sockets instead of trying one."""
    watch = ExitWatch(process)
    ended = asyncio.ensure_future(watch.wait())
    try:
        async with asyncio.timeout(LISTEN_DEADLINE_S):
            while not listens_on(process.pid, VHOST_USER_SOCKET):
                done, _ = await asyncio.wait({ended}, timeout=0.001)
                if done:
                    raise _early_end(vm_dir, "the vsock bridge")
    except TimeoutError:
        raise MonitorError(
            f"the vsock bridge did not listen within {LISTEN_DEADLINE_S:g} s",
            details=_tail_of(f"{vm_dir}/{MONITOR_LOG}"),
        ) from None
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        watch.close()


async def _end(process: ProcessIdentity) -> None:
    """KILL through a pidfd whose identity was checked, and wait. Nothing to do where it is gone."""
    watch = ExitWatch(process)
    try:
        if watch.kill(signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_DEADLINE_S):
                    await watch.wait()
    finally:
        watch.close()


def _early_end(vm_dir: str, what: str) -> MonitorError:
    tail = _tail_of(f"{vm_dir}/{MONITOR_LOG}")
    said = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")[:300]
    return MonitorError(f"{what} ended at once" + (f": {said}" if said else ""), fault=said, details=tail)


def _tail_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
