"""Machine monitors behind one protocol (DESIGN.md).

A Monitor is an installed program (Firecracker, QEMU). A Machine is one running process of it: its
working directory is the VM's folder and every socket and disk name it is given is relative to that
(no 108-byte limit; snapshots stay relocatable). Processes are launched through the helper, so that
their identity is recorded before their program runs. Nothing here touches store, network or disks.
After a crash of the daemon the machine process runs on; `Monitor.adopt` finds the way back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from banger.model.records import ProcessIdentity

MONITOR_ROLE = "monitor"
"""Of the process whose pid file says which program a machine runs on (Machine.processes: the first)."""


class MonitorKind(StrEnum):
    FIRECRACKER = "firecracker"
    QEMU = "qemu"


API_SOCKET = "fc.sock"
"""The monitor's control socket in the VM's folder (Firecracker's API; QEMU's QMP)."""
VSOCK_SOCKET = "v.sock"
"""The guest socket: connect, send `CONNECT <port>\\n`, read `OK <port>\\n` (both monitors)."""
CONSOLE_LOG = "console.log"
MONITOR_LOG = "monitor.log"
METRICS_FILE = "metrics.json"
VERSION_S = 30.0
"""For a monitor's program to say which version it is: a busy host may have to read it from a slow disk."""


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, by its order: the first is /dev/vda. path: absolute, or relative to the VM's folder."""

    drive_id: str
    path: str
    read_only: bool = False


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True):
    tap: str
    mac: str


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a monitor needs to know of a machine. Paths: absolute, or relative to vm_dir."""

    vm_id: str
    vm_dir: str
    vcpu_count: int
    memory_mib: int
    kernel_path: str
    initrd_path: str  # shared initramfs followed by the VM's own archive, one file
    boot_args: str  # what the guest needs; the driver adds what its machine needs
    drives: tuple[Drive, ...]
    network: tuple[NetworkInterface, ...]
    guest_cid: int = 3


class MonitorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """features: names such as "pause", "snapshot", "serial_file", "kvm" (hardware acceleration usable)."""

    kind: MonitorKind
    path: str
    version: tuple[int, int, int]
    features: frozenset[str]
    note: str = ""  # one line for the user, e.g. "no usable KVM here: emulated, slower"


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine's monitor ended. status is None where the process was not our child."""

    status: int | None
    reason: str  # "shutdown" | "reset" | "killed" | "failed" | "unknown"


class Launcher(Protocol):
    """What a driver needs to start processes; the helper implements it."""

    async def launch(
        self,
        argv: Sequence[str],
        *,
        role: str,
        vm_id: str,
        vm_dir: str,
        stdout: str,
    ) -> ProcessIdentity:
        """Start argv in its own session with cwd vm_dir, stdin closed, stdout and stderr appended to the
        file `stdout` (relative to vm_dir). The identity is in VM_DIR/<role>.pid before argv[0] runs."""
        ...


class Machine(Protocol):
    """One machine process. All methods may raise vmm.errors.MonitorError."""

    @property
    def processes(self) -> tuple[ProcessIdentity, ...]:
        """Every process of this machine, the one with MONITOR_ROLE first."""
        ...

    async def configure(self, spec: MachineSpec) -> None: ...

    async def start(self) -> None:
        """Let the guest run. Returns when the monitor has accepted it, not when the guest is up."""
        ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def ctrl_alt_del(self) -> None:
        """Press Ctrl-Alt-Del (both monitors' machines have the key): an orderly reboot, to most inits."""
        ...

    async def flush_metrics(self) -> None: ...

    async def exited(self) -> Exit:
        """Wait until the monitor has gone (pidfd; no polling)."""
        ...

    async def close(self) -> None:
        """Let go of connections and descriptors. The process runs on."""
        ...


class Monitor(Protocol):
    """A monitor found on this host."""

    @property
    def info(self) -> MonitorInfo: ...

    async def launch(self, spec: MachineSpec, launcher: Launcher) -> Machine:
        """Start the process(es) for spec, up to where `configure` can be called."""
        ...

    async def adopt(self, vm_dir: str, processes: tuple[ProcessIdentity, ...]) -> Machine:
        """A Machine for processes that an earlier daemon launched and that are alive."""
        ...
