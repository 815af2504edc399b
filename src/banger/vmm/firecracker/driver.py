"""Firecracker as found on this host: its program, version, and what that version may be asked to do.

Version gates come from Firecracker's release notes; unknown newer versions are taken as the newest known.
Used by vmm/select and, through the Monitor protocol, by vm. Leaves nothing behind.
"""

from __future__ import annotations

import re

from banger.model.deadlines import USUAL, Deadlines
from banger.model.records import ProcessIdentity
from banger.system import programs
from banger.system.errors import CommandError
from banger.system.run import run
from banger.vmm.errors import MonitorError, MonitorUnsupported
from banger.vmm.firecracker.machine import FirecrackerMachine
from banger.vmm.protocol import VERSION_S, Launcher, MachineSpec, MonitorInfo, MonitorKind

PROGRAM = "firecracker"
MINIMUM = (1, 10, 0)
"""Guest kernels of 6.1 with ACPI: below that, Debian's kernel finds no devices."""
BROKEN_RESUME = ((1, 16, 0), (1, 16, 1))
"""After a bare pause and resume, every connection from the host to the guest's vsock hangs (PR 6100)."""

Version = tuple[int, int, int]


def parse_version(output: str) -> Version:
    """From `firecracker --version`. Raises ValueError."""
    found = re.search(r"^Firecracker v(\d{1,4})\.(\d{1,4})\.(\d{1,4})", output, re.MULTILINE)
    if found is None:
        raise ValueError(f"no version in {output[:80]!r}")
    return int(found[1]), int(found[2]), int(found[3])


def features_of(version: Version) -> frozenset[str]:
    """Names: see MonitorInfo. The guest's vsock is always there, so its bugs gate pause and resume."""
    features = {"ctrl_alt_del", "metrics"}
    if version not in BROKEN_RESUME:
        features |= {"pause", "snapshot"}
    if version >= (1, 14, 0):
        features.add("serial_file")
    if version >= (1, 16, 0):
        features |= {"mtu", "serial_rate", "vsock_override"}
    if version >= (1, 17, 0):
        features.add("bzimage")
    return frozenset(features)


async def find_firecracker(
    configured: str = "", *, kvm_usable: bool = True, deadlines: Deadlines = USUAL
) -> FirecrackerMonitor | None:
    """The monitor at `configured`, else on PATH; None where there is none. Raises MonitorError
    where there is one that does not work, HOST_UNSUITABLE where it is too old."""
    path = programs.find(configured or PROGRAM)
    if path is None:
        return None
    try:
        completed = await run([path, "--version"], timeout_s=VERSION_S, output_limit=4096)
        version = parse_version(completed.stdout.decode("utf-8", "replace"))
    except (CommandError, ValueError) as error:
        raise MonitorError(
            f"{path} does not work as Firecracker: {error}", hint="set firecracker_bin to a working one"
        ) from None
    if version < MINIMUM:
        raise MonitorUnsupported(
            f"Firecracker {'.'.join(map(str, version))} at {path} is too old",
            hint=f"install {'.'.join(map(str, MINIMUM))} or newer",
        )
    features = features_of(version)
    note = ""
    if kvm_usable:
        features |= {"kvm"}
    else:
        note = "no usable KVM here: Firecracker's guests will not get far"
    return FirecrackerMonitor(
        MonitorInfo(kind=MonitorKind.FIRECRACKER, path=path, version=version, features=features, note=note),
        deadlines=deadlines,
    )


class FirecrackerMonitor:
    def __init__(self, info: MonitorInfo, *, deadlines: Deadlines = USUAL) -> None:
        self._info = info
        self._deadlines = deadlines

    @property
    def info(self) -> MonitorInfo:
        return self._info

    async def launch(self, spec: MachineSpec, launcher: Launcher) -> FirecrackerMachine:
        return await FirecrackerMachine.launch(self._info, spec, launcher=launcher, deadlines=self._deadlines)

    async def adopt(self, vm_dir: str, processes: tuple[ProcessIdentity, ...]) -> FirecrackerMachine:
        return FirecrackerMachine(self._info, vm_dir, processes=processes, deadlines=self._deadlines)
