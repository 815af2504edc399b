"""Which machine monitor new VMs get: Firecracker where KVM runs stock kernels, else QEMU.

Called by the daemon's composition root at first need; cheap to keep, not cheap to repeat (two programs'
versions and a probe guest). Leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import msgspec

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.model.deadlines import USUAL, Deadlines
from banger.system.kvm import KvmStatus, kvm_status
from banger.system.lockorder import OrderedLock, Rank
from banger.system.process import executable, read_pid_file
from banger.vmm.firecracker.driver import FirecrackerMonitor, find_firecracker
from banger.vmm.protocol import MONITOR_ROLE, Monitor, MonitorKind
from banger.vmm.qemu.driver import BridgeFinder, find_qemu

INSTALL_QEMU = "install QEMU (on Debian or Ubuntu: sudo apt install qemu-system-x86)"


class ChosenMonitor:
    """The host's monitor, chosen at first need and kept; and the one that an older machine runs on."""

    def __init__(self, settings: Settings, bridge: BridgeFinder, *, deadlines: Deadlines = USUAL) -> None:
        self._settings = settings
        self._bridge = bridge
        self._deadlines = deadlines
        self._monitor: Monitor | None = None
        self._choosing = OrderedLock(Rank.LEAF, "monitor")

    async def __call__(self) -> Monitor:
        async with self._choosing:
            if self._monitor is None:
                self._monitor = await choose_monitor(self._settings, self._bridge, deadlines=self._deadlines)
            return self._monitor

    async def of(self, vm_dir: str) -> Monitor:
        """By the program that runs in vm_dir: config or host may have changed since it was started."""
        identity = read_pid_file(f"{vm_dir}/{MONITOR_ROLE}.pid", role=MONITOR_ROLE)
        program = os.path.basename(executable(identity.pid)) if identity is not None else ""
        kind = MonitorKind.QEMU if program.startswith("qemu") else MonitorKind.FIRECRACKER
        monitor = await self()
        if not program or monitor.info.kind is kind:
            return monitor
        settings = msgspec.structs.replace(self._settings, vmm=kind.value)
        return await choose_monitor(settings, self._bridge, deadlines=self._deadlines)


async def choose_monitor(
    settings: Settings,
    bridge: BridgeFinder,
    *,
    kvm: Callable[[], Awaitable[KvmStatus]] = kvm_status,
    deadlines: Deadlines = USUAL,
) -> Monitor:
    """settings.vmm: auto, firecracker or qemu. bridge: asked for vhost-device-vsock when QEMU first
    launches. Raises HOST_UNSUITABLE with what to install, MONITOR_FAILED where a program is broken."""
    status = await kvm()
    if settings.vmm != "qemu":
        firecracker = await _firecracker(settings, status, deadlines=deadlines)
        if firecracker is not None:
            return firecracker
    qemu = await find_qemu(settings.qemu_bin, bridge, kvm_usable=status.usable)
    if qemu is not None:
        return qemu
    if settings.qemu_bin:
        raise _unsuitable(
            f"there is no QEMU at {settings.qemu_bin}", "set qemu_bin in config.toml to its path"
        )
    if settings.vmm == "qemu":
        raise _unsuitable("QEMU is not installed on this host", INSTALL_QEMU)
    if status.usable:
        raise _unsuitable(
            "no machine monitor is installed on this host", f"install Firecracker, or {INSTALL_QEMU}"
        )
    raise _unsuitable(
        f"this host cannot run VMs as it is: {status.reason}, and QEMU is missing", INSTALL_QEMU
    )


async def _firecracker(
    settings: Settings, status: KvmStatus, *, deadlines: Deadlines
) -> FirecrackerMonitor | None:
    """The one to use, or None for "take QEMU". Asked for by name it is used even where KVM is no good:
    its interface works there all the same."""
    forced = settings.vmm == "firecracker"
    if not forced and not status.usable:
        return None
    found = await find_firecracker(settings.firecracker_bin, kvm_usable=status.usable, deadlines=deadlines)
    if found is not None:
        if forced and not status.openable:
            raise _unsuitable(
                f"Firecracker needs KVM: {status.reason}", 'enable virtualisation, or set vmm = "qemu"'
            )
        return found
    if settings.firecracker_bin:
        raise _unsuitable(
            f"there is no Firecracker at {settings.firecracker_bin}", "set firecracker_bin in config.toml"
        )
    if forced:
        raise _unsuitable("Firecracker is not installed on this host", 'put it on PATH, or set vmm = "auto"')
    return None


def _unsuitable(brief: str, hint: str) -> BangerError:
    return BangerError(ErrorCode.HOST_UNSUITABLE, brief, hint=hint)
