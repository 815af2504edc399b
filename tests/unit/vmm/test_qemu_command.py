"""QEMU's command line and what an exit means."""

from __future__ import annotations

import json

import msgspec
import pytest

from banger.vmm.protocol import Drive, Exit, MachineSpec, NetworkInterface
from banger.vmm.qemu.command import boot_args, qemu_argv
from banger.vmm.qemu.driver import parse_version
from banger.vmm.qemu.machine import exit_of
from banger.vmm.qemu.qmp import ShutdownData

SPEC = MachineSpec(
    vm_id="ab" * 32,
    vm_dir="/vm",
    vcpu_count=2,
    memory_mib=512,
    kernel_path="vmlinux",
    initrd_path="initrd.img",
    boot_args="extra=1",
    drives=(Drive(drive_id="root", path='/a,b="c".img', read_only=True), Drive(drive_id="work", path="w")),
    network=(NetworkInterface(tap="tap0", mac="06:00:ac:10:00:02"),),
)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def test_an_emulated_guest_is_told_its_clocks_rate() -> None:
    args = boot_args(SPEC, kvm=False, tsc_khz=2_596_128).split()
    assert {"tsc_early_khz=2596128", "tsc=reliable", "no_timer_check", "nokaslr", "extra=1"} <= set(args)
    assert not any(arg.startswith("tsc_early_khz") for arg in boot_args(SPEC, kvm=False, tsc_khz=0).split())


def test_a_guest_with_kvm_keeps_its_protections() -> None:
    args = boot_args(SPEC, kvm=True, tsc_khz=0).split()
    assert "nokaslr" not in args
    assert "mitigations=off" not in args
    argv = qemu_argv("qemu", SPEC, kvm=True, tsc_khz=0)
    assert values(argv, "-cpu") == ["host"]
    assert "pit=off" not in " ".join(values(argv, "-M"))


def test_any_path_is_just_a_path() -> None:
    drives = [json.loads(value) for value in values(qemu_argv("q", SPEC, kvm=False, tsc_khz=1), "-blockdev")]
    assert [drive["file"]["filename"] for drive in drives] == ['/a,b="c".img', "w"]
    assert [drive["read-only"] for drive in drives] == [True, False]
    assert all(drive["file"]["cache"] == {"direct": False, "no-flush": False} for drive in drives)


def test_a_block_device_is_no_file_to_qemu() -> None:
    drives = (Drive(drive_id="root", path="/dev/dm-0"), Drive(drive_id="work", path="work.ext4"))
    argv = qemu_argv("q", msgspec.structs.replace(SPEC, drives=drives), kvm=False, tsc_khz=1)
    found = [json.loads(value)["file"]["driver"] for value in values(argv, "-blockdev")]
    assert found == ["host_device", "file"]


def test_the_machine_starts_stopped_and_ends_on_reset() -> None:
    argv = qemu_argv("q", SPEC, kvm=False, tsc_khz=1)
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(argv)
    assert values(argv, "-qmp") == ["unix:fc.sock,server=on,wait=off"]
    assert values(argv, "-bios") == ["qboot.rom"]  # newer QEMUs' default lays tables over the initrd
    assert "path=console.log,append=on" in " ".join(values(argv, "-chardev"))
    assert values(argv, "-netdev") == ["tap,id=n0,ifname=tap0,script=no,downscript=no"]


def test_a_machine_may_have_no_disk_and_no_network() -> None:
    argv = qemu_argv("q", msgspec.structs.replace(SPEC, drives=(), network=()), kvm=False, tsc_khz=1)
    assert not values(argv, "-blockdev")
    assert not values(argv, "-netdev")


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (0, "guest-reset", "reset"),
        (0, "guest-shutdown", "shutdown"),
        (0, "guest-panic", "failed"),
        (0, "host-signal", "killed"),
        (0, "something new", "shutdown"),
        (0, "", "shutdown"),
        (-9, "", "killed"),
        (-6, "", "failed"),
        (1, "", "failed"),
        (None, "", "unknown"),
    ],
)
def test_exit_reasons(status: int | None, reason: str, expected: str) -> None:
    shutdown = ShutdownData(reason=reason) if reason else None
    assert exit_of(status, shutdown) == Exit(status=status, reason=expected)


def test_versions() -> None:
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == (7, 2, 22)
    assert parse_version("QEMU emulator version 10.0\n") == (10, 0, 0)
    with pytest.raises(ValueError, match="no version"):
        parse_version("bash: qemu: command not found")
