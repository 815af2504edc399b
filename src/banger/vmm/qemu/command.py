"""QEMU's command line for a microvm: the whole machine is described here, nothing later. Pure.

The options are the fastest set measured for a guest that is the same as Firecracker's (ARCHITECTURE.md,
"Machine monitors"). Disks are given as JSON, so that no character of a path means anything to QEMU.
"""

from __future__ import annotations

import msgspec

from banger.vmm.protocol import API_SOCKET, CONSOLE_LOG, VSOCK_SOCKET, Drive, MachineSpec

VHOST_USER_SOCKET = "vu.sock"
"""Between QEMU and the vsock bridge, in the VM's folder."""
_COMMON_ARGS = (
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1"
    " i8042.noaux i8042.nomux i8042.dumbkbd"
)


def boot_args(spec: MachineSpec, *, kvm: bool, tsc_khz: int) -> str:
    """Under emulation the guest cannot calibrate its clock (no timer but the counter itself), and
    neither randomised addresses nor processor mitigations protect anything there."""
    parts = [_COMMON_ARGS]
    if not kvm:
        parts.append("nokaslr mitigations=off tsc=reliable no_timer_check")
        if tsc_khz:
            parts.append(f"tsc_early_khz={tsc_khz}")
    parts.append(spec.boot_args)
    return " ".join(part for part in parts if part)


def bridge_argv(program: str, spec: MachineSpec) -> list[str]:
    return [
        program,
        "--guest-cid",
        str(spec.guest_cid),
        "--socket",
        VHOST_USER_SOCKET,
        "--uds-path",
        VSOCK_SOCKET,
    ]


def qemu_argv(program: str, spec: MachineSpec, *, kvm: bool, tsc_khz: int) -> list[str]:
    argv = [program, "-name", f"banger-{spec.vm_id[:60]}"]
    if kvm:
        argv += ["-M", "microvm,acpi=on,memory-backend=mem0", "-accel", "kvm", "-cpu", "host"]
    else:
        argv += ["-M", "microvm,acpi=on,pic=off,pit=off,memory-backend=mem0"]
        argv += ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"]
    argv += ["-bios", "qboot.rom", "-smp", str(spec.vcpu_count), "-m", str(spec.memory_mib)]
    argv += ["-object", f"memory-backend-memfd,id=mem0,size={spec.memory_mib}M,share=on"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-qmp", f"unix:{API_SOCKET},server=on,wait=off"]
    # append: the file may be cut to size while QEMU writes to it
    argv += ["-chardev", f"file,id=con0,path={CONSOLE_LOG},append=on", "-serial", "chardev:con0"]
    argv += ["-kernel", spec.kernel_path, "-initrd", spec.initrd_path]
    argv += ["-append", boot_args(spec, kvm=kvm, tsc_khz=tsc_khz)]
    for index, drive in enumerate(spec.drives):
        argv += ["-blockdev", _blockdev(index, drive), "-device", _block_device(index, drive)]
    for index, interface in enumerate(spec.network):
        argv += ["-netdev", f"tap,id=n{index},ifname={interface.tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-device,netdev=n{index},mac={interface.mac}"]
    argv += ["-chardev", f"socket,id=vs0,path={VHOST_USER_SOCKET}"]
    argv += ["-device", "vhost-user-vsock-device,chardev=vs0"]
    argv += ["-device", "virtio-rng-device"]
    # a keyboard, for Ctrl-Alt-Del: an image without udev and logind never hears the power button
    argv += ["-device", "i8042"]
    return argv


def _blockdev(index: int, drive: Drive) -> str:
    """A raw file through the host's page cache; the guest's flushes are fdatasync."""
    cache = {"direct": False, "no-flush": False}
    node: dict[str, object] = {
        "driver": "raw",
        "node-name": f"d{index}",
        "read-only": drive.read_only,
        "cache": cache,
        "file": {
            # QEMU's `file` takes regular files only (since 6.0)
            "driver": "host_device" if drive.path.startswith("/dev/") else "file",
            "filename": drive.path,
            "read-only": drive.read_only,
            "cache": cache,
            "discard": "ignore" if drive.read_only else "unmap",
        },
        "discard": "ignore" if drive.read_only else "unmap",
    }
    return msgspec.json.encode(node).decode()


def _block_device(index: int, drive: Drive) -> str:
    # the front end says writeback itself: QEMU's blockdev has no default of the guest's own
    return f"virtio-blk-device,drive=d{index},write-cache={'off' if drive.read_only else 'on'}"
