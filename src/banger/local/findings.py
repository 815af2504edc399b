"""What doctor says: from facts about the host to PASS, WARN or FAIL, one line, and what to do.

Pure: every function takes what was found and returns a Check, so that each case is tested without
the host that has it. FAIL: no guest starts as things are. WARN: guests start, something is missing or slow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import banger
from banger.model.defaults import ResolvedSpec
from banger.model.sizes import format_size
from banger.system.host_packages import TEST, HostPackage
from banger.system.kvm import KvmStatus

GIB = 1 << 30
IMAGE_ROOM = 5 * GIB
"""Building the default image takes about 2 GiB at its peak, and guests want room to write."""
LEAST_ROOM = 1 * GIB
"""Below this free space VMs are refused (SPEC §1)."""


class Status(StrEnum):
    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """message: what was found, one line; hint: what to do about it, one line, "" for nothing."""

    name: str
    status: Status
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """family: "debian", "fedora", "arch", or "" for one whose package tool banger does not know."""

    family: str
    name: str

    @classmethod
    def of(cls, release: Mapping[str, str]) -> Distribution:
        """From /etc/os-release: its ID, else one of ID_LIKE."""
        kinds = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
        known = {"debian": "debian", "ubuntu": "debian", "fedora": "fedora", "rhel": "fedora", "arch": "arch"}
        family = next((known[kind] for kind in kinds if kind in known), "")
        return cls(family, release.get("PRETTY_NAME") or release.get("ID") or "this distribution")

    def install(self, row: HostPackage) -> str:
        """The command that installs a row's package here."""
        if self.family == "debian":
            names = row.debian.split("|")
            return f"sudo apt install {names[0]}" + (f" (or {names[-1]})" if names[1:] else "")
        if self.family == "fedora":
            return f"sudo dnf install {row.fedora or row.name}"
        if self.family == "arch":
            return f"sudo pacman -S {row.arch or row.name}"
        return f"install what Debian calls {row.name}; banger does not know {self.name}'s package tool"


def _severity(row: HostPackage) -> Status:
    return Status.FAIL if row.required and row.use != TEST else Status.WARN


def find_version(text: str) -> str:
    """The first thing in a program's output that looks like a version; "" where nothing does."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else ""


def _older(version: str, minimum: Sequence[int]) -> bool:
    return tuple(int(part) for part in version.split(".")) < tuple(minimum)


def package(row: HostPackage, lacking: Sequence[str], *, version: str, distribution: Distribution) -> Check:
    purpose = row.why + (" (only for banger's own tests)" if row.use == TEST else "")
    if lacking:
        what = ", ".join(lacking)
        return Check(row.name, _severity(row), f"missing: {what}. For: {purpose}", distribution.install(row))
    if row.minimum and not version:
        return Check(row.name, Status.WARN, f"{row.version_argv[0]} does not tell its version")
    if row.minimum and _older(version, row.minimum):
        wanted = ".".join(map(str, row.minimum))
        message = f"{row.version_argv[0]} is {version}, older than {wanted}. For: {purpose}"
        return Check(row.name, _severity(row), message, f"upgrade it: {distribution.install(row)}")
    there = ", ".join(row.programs) or "there"
    return Check(row.name, Status.PASS, there + (f" {version}" if version else ""))


def broken_package(row: HostPackage, error: str, distribution: Distribution) -> Check:
    return Check(row.name, _severity(row), f"does not work: {error}", distribution.install(row))


def privileges(*, root: bool) -> Check:
    if root:
        return Check("privileges", Status.PASS, "root: bridge, taps and firewall can be made")
    return Check(
        "privileges",
        Status.FAIL,
        "not root: banger cannot make the bridge and taps that guests need",
        "run it as root, for example with sudo",
    )


def subordinate_ids(there: bool) -> Check:
    if there:
        return Check("subordinate ids", Status.PASS, "this user may build images in a user namespace")
    return Check(
        "subordinate ids",
        Status.FAIL,
        "this user has no range in /etc/subuid and /etc/subgid: images cannot be built",
        "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
    )


def kvm(status: KvmStatus, *, virtual_machine: bool) -> Check:
    """Why guests are emulated, where they are, in words; each case has its own remedy."""
    if status.usable:
        return Check("kvm", Status.PASS, "/dev/kvm runs stock kernels")
    message = f"guests are emulated, slower: {status.reason}"
    if not status.present:
        hint = (
            "this is a virtual machine: turn on nested virtualisation for it where it is run"
            if virtual_machine
            else "turn on virtualisation in the firmware's set-up, then: sudo modprobe kvm_intel (or kvm_amd)"
        )
    elif not status.openable:
        hint = "sudo usermod -aG kvm $USER, then log in again"
    else:
        hint = "nothing to do on this machine: its hypervisor would have to offer real nested virtualisation"
    return Check("kvm", Status.WARN, message, hint)


def firecracker(path: str, version: str, *, kvm_usable: bool) -> Check:
    if path:
        return Check("firecracker", Status.PASS, f"Firecracker {version} at {path}")
    if not kvm_usable:
        return Check("firecracker", Status.PASS, "not installed, and of no use without KVM")
    return Check(
        "firecracker",
        Status.WARN,
        "not installed: guests run on QEMU, which starts slower and takes more memory",
        "take the static binary from the release page of the Firecracker project on GitHub, check its sha256,"
        " and put it on PATH as firecracker (docs/firecracker.md)",
    )


def device(name: str, path: str, error: str, *, module: str) -> Check:
    if not error:
        return Check(name, Status.PASS, f"{path} opens")
    return Check(name, Status.FAIL, f"{path}: {error}", f"as root: modprobe {module}")


def device_mapper(*, there: bool, asked_for: bool) -> Check:
    if there:
        return Check("device-mapper", Status.PASS, "there")
    if asked_for:
        return Check(
            "device-mapper",
            Status.FAIL,
            'this kernel has none, and root_disk is "dm-snapshot"',
            'sudo modprobe dm_snapshot, or root_disk = "auto"',
        )
    return Check("device-mapper", Status.PASS, "none in this kernel; needed only for root_disk dm-snapshot")


def folder(name: str, path: str, free: int | None, *, large: bool = True) -> Check:
    """free: bytes, None where it cannot be written. large: disks of guests go there."""
    if free is None:
        return Check(
            name, Status.FAIL, f"{path} cannot be written by this user", "set BANGER_HOME, or mend its owner"
        )
    shown = f"{path}, {free / GIB:.1f} GiB free"
    if large and free < LEAST_ROOM:
        return Check(name, Status.FAIL, shown, "VMs are refused below 1 GiB: make room, or set BANGER_HOME")
    if large and free < IMAGE_ROOM:
        return Check(name, Status.WARN, shown, "building an image takes 2 GiB: make room, or set BANGER_HOME")
    return Check(name, Status.PASS, shown if large else path)


def made_at_first_use(name: str, there: Sequence[str], otherwise: str) -> Check:
    if there:
        return Check(name, Status.PASS, ", ".join(there))
    return Check(name, Status.PASS, f"none yet: {otherwise}")


def images(names: Sequence[str], default: str) -> Check:
    there = [f"{name} (the default)" if name == default else name for name in names]
    if default not in names:
        there.append(f"{default} (the default) is got at the first start, in a minute or two")
    return Check("image", Status.PASS, ", ".join(there))


def names_port(listen: str, *, busy: bool, holder: str, ours: bool) -> Check:
    """holder: who has the port, "" where it cannot be seen. ours: it is the daemon of this instance."""
    if ours:
        return Check("names", Status.PASS, f"{listen}: banger's daemon serves NAME.vm there")
    if not busy:
        return Check("names", Status.PASS, f"{listen} is free: the daemon takes it at its start")
    return Check(
        "names",
        Status.WARN,
        f"{holder or 'another program'} has {listen}: the host cannot ask for NAME.vm",
        "set dns_listen in config.toml to a free address and port",
    )


def forwarding(*, enabled: bool) -> Check:
    if enabled:
        return Check("forwarding", Status.PASS, "IPv4 forwarding is on")
    return Check("forwarding", Status.PASS, "IPv4 forwarding is off; turned on while a guest has NAT")


def defaults(resolved: ResolvedSpec) -> Check:
    """Each value with where it came from."""
    spec, origins = resolved.spec, resolved.origins
    shown = {
        "vcpu_count": f"{spec.vcpu_count} vcpu",
        "memory_mib": f"{spec.memory_mib} MiB",
        "work_disk_size_bytes": f"{format_size(spec.work_disk_size_bytes)} disk",
        "system_overlay_size_bytes": f"{format_size(spec.system_overlay_size_bytes)} overlay",
        "nat_enabled": "NAT" if spec.nat_enabled else "no NAT",
    }
    said = ", ".join(f"{words} ({origins[field]})" for field, words in shown.items())
    return Check("defaults", Status.PASS, said)


def daemon(version: str, pid: int, warnings: Sequence[str]) -> Check:
    shown = f"banger {version} runs (pid {pid})"
    if version != banger.__version__:
        hint = "banger daemon stop: the next command starts this version's, and VMs run on"
        return Check("daemon", Status.WARN, f"{shown}; this is {banger.__version__}", hint)
    if warnings:
        return Check("daemon", Status.WARN, f"{shown}: {'; '.join(warnings)}", "banger daemon status")
    return Check("daemon", Status.PASS, shown)


def ssh_key(path: str, *, mode: int) -> Check:
    if mode & 0o077:
        said = f"{path} is open to others (mode {mode:04o}): ssh refuses it"
        return Check("ssh key", Status.WARN, said, f"chmod 600 {path}")
    return Check("ssh key", Status.PASS, path)
