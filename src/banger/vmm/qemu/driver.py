"""QEMU's microvm as found on this host: the same guest as Firecracker's, emulated where KVM is no use.

Used by vmm/select and, through the Monitor protocol, by vm. Leaves nothing behind.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Awaitable, Callable

from banger.model.records import ProcessIdentity
from banger.system import programs
from banger.system.errors import CommandError
from banger.system.run import run
from banger.system.tsc import tsc_khz
from banger.vmm.errors import MonitorError, MonitorUnsupported
from banger.vmm.protocol import VERSION_S, Launcher, MachineSpec, MonitorInfo, MonitorKind
from banger.vmm.qemu.machine import QemuMachine

PROGRAM = "qemu-system-x86_64"
MINIMUM = (7, 2, 0)
"""Debian 12's: the oldest that was tried."""
EMULATED = "no usable KVM here: emulated, slower"

BridgeFinder = Callable[[], Awaitable[str]]
"""Gives the path of vhost-device-vsock, bringing it first where it is not there."""

Version = tuple[int, int, int]


def parse_version(output: str) -> Version:
    """From `qemu-system-x86_64 --version`. Raises ValueError."""
    found = re.search(r"QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", output)
    if found is None:
        raise ValueError(f"no version in {output[:80]!r}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


async def find_qemu(configured: str, bridge: BridgeFinder, *, kvm_usable: bool) -> QemuMonitor | None:
    """The monitor at `configured`, else on PATH; None where there is none. Raises MonitorError
    where there is one that does not work, HOST_UNSUITABLE where it cannot be used here."""
    path = programs.find(configured or PROGRAM)
    if path is None:
        return None
    if platform.machine() != "x86_64":
        raise MonitorUnsupported(f"QEMU's microvm is for x86_64; this host is {platform.machine()}")
    try:
        completed = await run([path, "--version"], timeout_s=VERSION_S, output_limit=4096)
        version = parse_version(completed.stdout.decode("utf-8", "replace"))
    except (CommandError, ValueError) as error:
        raise MonitorError(
            f"{path} does not work as QEMU: {error}", hint="set qemu_bin to a working one"
        ) from None
    if version < MINIMUM:
        raise MonitorUnsupported(
            f"QEMU {'.'.join(map(str, version))} at {path} is too old",
            hint=f"install {'.'.join(map(str, MINIMUM))} or newer",
        )
    features = frozenset({"pause", "ctrl_alt_del", "metrics"} | ({"kvm"} if kvm_usable else set()))
    info = MonitorInfo(
        kind=MonitorKind.QEMU,
        path=path,
        version=version,
        features=features,
        note="" if kvm_usable else EMULATED,
    )
    return QemuMonitor(info, bridge)


class QemuMonitor:
    def __init__(self, info: MonitorInfo, bridge: BridgeFinder) -> None:
        self._info = info
        self._bridge = bridge

    @property
    def info(self) -> MonitorInfo:
        return self._info

    async def launch(self, spec: MachineSpec, launcher: Launcher) -> QemuMachine:
        kvm = "kvm" in self._info.features
        return await QemuMachine.launch(
            self._info,
            spec,
            launcher=launcher,
            bridge=await self._bridge(),
            kvm=kvm,
            tsc_khz=0 if kvm else await tsc_khz(),
        )

    async def adopt(self, vm_dir: str, processes: tuple[ProcessIdentity, ...]) -> QemuMachine:
        return QemuMachine(self._info, vm_dir, processes=processes)
