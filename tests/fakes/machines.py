"""What driver tests share: a folder as a VM has it, a kernel that any monitor loads, a machine's spec."""

from __future__ import annotations

import struct
from pathlib import Path

from banger.vmm.protocol import Drive, MachineSpec, NetworkInterface

VM_ID = "0123456789abcdef" * 4


def tiny_kernel() -> bytes:
    """A 64-bit ELF with one loaded page at 1 MiB: `hlt` for ever. It has the PVH note, so that
    Firecracker and QEMU both load it; it does nothing."""
    code = b"\xf4\xeb\xfd"
    # XEN_ELFNOTE_PHYS32_ENTRY
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x100000)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x100000, 0x100000, len(code), len(code), 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, 0x800, 0x100800, 0x100800, len(note), len(note), 4)
    return ((header + load + notes).ljust(0x800, b"\0") + note).ljust(0x1000, b"\0") + code


def make_vm(folder: Path, *, network: tuple[NetworkInterface, ...] = ()) -> MachineSpec:
    """FOLDER becomes a VM's folder: a name too long for a socket's path, kernel, initrd and two disks."""
    vm_dir = folder / ("v" * 120)
    vm_dir.mkdir(mode=0o700, parents=True)
    (vm_dir / "vmlinux").write_bytes(tiny_kernel())
    (vm_dir / "initrd.img").write_bytes(b"not much of an initrd")
    for name in ("root.img", "overlay.ext4"):
        (vm_dir / name).write_bytes(bytes(1 << 16))
    return MachineSpec(
        vm_id=VM_ID,
        vm_dir=str(vm_dir),
        vcpu_count=1,
        memory_mib=128,
        kernel_path="vmlinux",
        initrd_path="initrd.img",
        boot_args="banger.test=1",
        drives=(
            Drive(drive_id="root", path=str(vm_dir / "root.img"), read_only=True),
            Drive(drive_id="overlay", path="overlay.ext4"),
        ),
        network=network,
    )
