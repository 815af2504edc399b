"""One Firecracker process: launched, configured call by call, started, watched.

Firecracker never unlinks its sockets and opens its log and metrics without O_APPEND, so each start gets
fresh files. The guest's console is Firecracker's standard output, which the launcher appends to
console.log: unlike `PUT /serial` that survives the file being cut to size. After a crash of the daemon
the process runs on with its sockets in the VM's folder; `Monitor.adopt` makes a new object for it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from banger.errors import ErrorCode
from banger.model.deadlines import USUAL, Deadlines
from banger.model.records import ProcessIdentity
from banger.system.exits import ExitWatch
from banger.vmm.errors import MonitorError, MonitorUnsupported
from banger.vmm.firecracker.api import FirecrackerApi, Json
from banger.vmm.protocol import (
    API_SOCKET,
    CONSOLE_LOG,
    METRICS_FILE,
    MONITOR_LOG,
    VSOCK_SOCKET,
    Drive,
    Exit,
    Launcher,
    MachineSpec,
    MonitorInfo,
)

BOOT_ARGS = (
    "console=ttyS0 quiet reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on"
    " cryptomgr.notests rcupdate.rcu_expedited=1 swiotlb=noforce"
)
"""reboot=k: a reset through the keyboard controller ends the process. The i8042 options save half a
second of probing and keep the keyboard, which Ctrl-Alt-Del needs (so no i8042.nopnp)."""
_BOOT_ARGS_LIMIT = 2047
SERIAL_RATE = {"size": 1 << 20, "one_time_burst": 8 << 20, "refill_time": 1000}
"""A guest that floods its console is slowed to 1 MiB/s, where Firecracker can."""
LOGGING = ("--log-path", MONITOR_LOG, "--level", "Info")
_TAIL = 4096
_ENDING_S = 0.2
"""A process that dies closes its connections a moment before its end is seen."""


class FirecrackerMachine:
    def __init__(
        self,
        info: MonitorInfo,
        vm_dir: str,
        *,
        processes: tuple[ProcessIdentity, ...],
        deadlines: Deadlines = USUAL,
    ) -> None:
        self._info = info
        self._vm_dir = vm_dir
        self._processes = processes
        self._deadlines = deadlines
        self._api = FirecrackerApi(vm_dir, timeout_s=deadlines.monitor_call_s)
        self._watch = ExitWatch(processes[0])

    @classmethod
    async def launch(
        cls, info: MonitorInfo, spec: MachineSpec, *, launcher: Launcher, deadlines: Deadlines = USUAL
    ) -> FirecrackerMachine:
        for name in (API_SOCKET, VSOCK_SOCKET, MONITOR_LOG, METRICS_FILE):
            Path(spec.vm_dir, name).unlink(missing_ok=True)
        for name in (MONITOR_LOG, METRICS_FILE):  # Firecracker makes them itself only from 1.14 on
            os.close(os.open(f"{spec.vm_dir}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        identity = await launcher.launch(
            [info.path, "--id", spec.vm_id[:60], "--api-sock", API_SOCKET, *LOGGING],
            role="monitor",
            vm_id=spec.vm_id,
            vm_dir=spec.vm_dir,
            stdout=CONSOLE_LOG,
        )
        machine = cls(info, spec.vm_dir, processes=(identity,), deadlines=deadlines)
        try:
            await machine._connect()
        except BaseException:
            machine._watch.kill(signal.SIGKILL)  # the caller learns of no process, so it is ended here
            await machine.close()
            raise
        return machine

    @property
    def processes(self) -> tuple[ProcessIdentity, ...]:
        return self._processes

    async def configure(self, spec: MachineSpec) -> None:
        put = self._put
        await put("/machine-config", {"vcpu_count": spec.vcpu_count, "mem_size_mib": spec.memory_mib})
        boot_args = f"{BOOT_ARGS} {spec.boot_args}".strip()
        if len(boot_args) > _BOOT_ARGS_LIMIT:
            raise MonitorError(f"the kernel command line has {len(boot_args)} bytes; the most is 2047")
        await put(
            "/boot-source",
            {
                "kernel_image_path": spec.kernel_path,
                "initrd_path": spec.initrd_path,
                "boot_args": boot_args,
            },
        )
        for drive in spec.drives:
            await self._put_drive(drive)
        for index, interface in enumerate(spec.network):
            name = f"eth{index}"
            await put(
                f"/network-interfaces/{name}",
                {"iface_id": name, "host_dev_name": interface.tap, "guest_mac": interface.mac},
            )
        await put("/vsock", {"guest_cid": spec.guest_cid, "uds_path": VSOCK_SOCKET})
        await put("/entropy", {})
        if "serial_rate" in self._info.features:
            await put("/serial", {"rate_limiter": SERIAL_RATE})
        await put("/metrics", {"metrics_path": METRICS_FILE})

    async def start(self) -> None:
        await self._put("/actions", {"action_type": "InstanceStart"})

    async def pause(self) -> None:
        self._demand("pause", "pausing a VM", "guests hang after it is resumed; install 1.16.2 or newer")
        await self._api.patch("/vm", {"state": "Paused"})

    async def resume(self) -> None:
        self._demand("pause", "resuming a VM", "install 1.16.2 or newer")
        await self._api.patch("/vm", {"state": "Resumed"})

    async def ctrl_alt_del(self) -> None:
        await self._api.put("/actions", {"action_type": "SendCtrlAltDel"})

    async def flush_metrics(self) -> None:
        await self._api.put("/actions", {"action_type": "FlushMetrics"})

    async def exited(self) -> Exit:
        status = await self._watch.wait()
        return exit_of(status, self._log_tail())

    async def close(self) -> None:
        await self._api.close()
        self._watch.close()

    async def _put_drive(self, drive: Drive) -> None:
        body: dict[str, str | bool] = {
            "drive_id": drive.drive_id,
            # never a root device: that would append root= and ro or rw to the command line
            "is_root_device": False,
            "path_on_host": drive.path,
            "is_read_only": drive.read_only,
        }
        if not drive.read_only:
            body["cache_type"] = "Writeback"  # a guest's flush is the host's fsync
        await self._put(f"/drives/{drive.drive_id}", body)

    async def _put(self, path: str, body: Mapping[str, Json]) -> None:
        """A monitor that ended at it is the error, with what it said last; not the connection's end."""
        try:
            await self._api.put(path, body)
        except MonitorError as error:
            if error.fault or error.code is ErrorCode.TIMEOUT:
                raise
            try:
                async with asyncio.timeout(_ENDING_S):
                    status = await self._watch.wait()
            except TimeoutError:
                raise error from None
            raise self._ended(status, f"at {error.call}", call=error.call) from None

    async def _connect(self) -> None:
        """Until the API answers, or the process ends. Firecracker has no other sign that it listens,
        so connect() is tried again after 0.5 ms, growing to 10."""
        ended = asyncio.ensure_future(self._watch.wait())
        pause_s = 0.0005
        try:
            async with asyncio.timeout(self._deadlines.monitor_up_s):
                while True:
                    try:
                        await self._api.connect()
                        return
                    except (FileNotFoundError, ConnectionRefusedError):
                        done, _ = await asyncio.wait({ended}, timeout=pause_s)
                        pause_s = min(pause_s * 1.5, 0.01)
                    if done:
                        raise self._ended(ended.result(), "at once")
        except TimeoutError:
            raise MonitorError(
                f"Firecracker's API did not answer within {self._deadlines.monitor_up_s:g} s of its start",
                details=self._log_tail(),
            ) from None
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    def _ended(self, status: int | None, when: str, *, call: str = "") -> MonitorError:
        tail = self._log_tail()
        how = "" if status is None else f" with {status}" if status >= 0 else f" by signal {-status}"
        said = _complaint(tail) or _complaint(_tail_of(f"{self._vm_dir}/{CONSOLE_LOG}"))
        return MonitorError(
            f"Firecracker ended {when}{how}" + (f": {said}" if said else ""),
            call=call,
            fault=said,
            details=tail,
        )

    def _demand(self, feature: str, what: str, hint: str) -> None:
        if feature not in self._info.features:
            version = ".".join(map(str, self._info.version))
            raise MonitorUnsupported(f"{what} does not work with Firecracker {version}", hint=hint)

    def _log_tail(self) -> str:
        return _tail_of(f"{self._vm_dir}/{MONITOR_LOG}")


def exit_of(status: int | None, log_tail: str) -> Exit:
    """What an exit status (src: FcExitCode) or, of a process that was not our child, the log's end mean.

    On x86 a guest can only end Firecracker by a reset; whether it meant poweroff or reboot the agent says.
    """
    if status is None:
        said = re.findall(r"Firecracker exiting (?:successfully|with error)\. exit_code=(\d+)", log_tail)
        if not said:
            return Exit(status=None, reason="failed" if "panicked at" in log_tail else "unknown")
        status = int(said[-1])
        return Exit(status=None, reason="reset" if status == 0 else "failed")
    if status == 0:
        return Exit(status=0, reason="reset")
    return Exit(status=status, reason="killed" if status in (-1, -2, -3, -9, -15) else "failed")


def _tail_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""


def _complaint(text: str) -> str:
    """The last line that tells of an error, without its time stamp."""
    for line in reversed(text.splitlines()):
        if re.search(r"error[: ]|panicked|Failed|Error", line) and "exit_code" not in line:
            return re.sub(r"^\S+ \[[^\]]*\] ", "", line).strip()[:300]
    return ""
