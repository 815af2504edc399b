"""The lab host: a guest with device-mapper, KVM, tun, bridge and nftables, driven over banger's own agent.

It runs on the product's QEMU driver, with the artifacts' kernel, initramfs and agent, and with a processor
of its own (an AMD one with SVM, emulated), which no product setting asks for. Everything of it lies in one
folder; its processes are this one's children, and are ended at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from banger.guest.agent import AgentClient
from banger.guest.ready import ReadyListener
from banger.guest.stream import Exited, Stderr, Stdout
from banger.image.initramfs import GuestConfig, build_guest_initrd
from banger.image.kernel import modules_disk
from banger.model.records import Image, ProcessIdentity
from banger.system import ext4
from banger.vmm.protocol import Drive, MachineSpec
from banger.vmm.qemu.driver import find_qemu
from tests.artifacts import Artifacts
from tests.fakes.installed import DirectLauncher

CPU = "EPYC,+svm,-cx16"
ACCELERATOR = "tcg,thread=multi,tb-size=512"
MEMORY_MIB = 4096
BOOT_TIMEOUT_S = 300.0
VM_ID = "1ab0" * 16
MODULES = "kvm_amd tun bridge loop dm_snapshot nf_tables nft_masq nft_chain_nat"


class LabLauncher(DirectLauncher):
    """Gives QEMU the lab's processor."""

    async def launch(
        self, argv: Sequence[str], *, role: str, vm_id: str, vm_dir: str, stdout: str
    ) -> ProcessIdentity:
        words = list(argv)
        for option, value in (("-cpu", CPU), ("-accel", ACCELERATOR)):
            if option in words:
                words[words.index(option) + 1] = value
        return await super().launch(words, role=role, vm_id=vm_id, vm_dir=vm_dir, stdout=stdout)


class LabHost:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def run(self, script: str, *, timeout_s: float) -> tuple[int, str]:
        """A shell script in the lab host: its status and what it said, on both streams (in FOLDER/run.log as
        it goes). Starting anything there is slow, so scripts are few and long."""
        said = bytearray()
        status = -1
        async with (
            asyncio.timeout(timeout_s),
            AgentClient(str(self.folder)) as agent,
            await agent.exec(["sh", "-euc", script], cwd="/root") as stream,
        ):
            async for event in stream:
                match event:
                    case Stdout() | Stderr():
                        said += event.data
                        (self.folder / "run.log").write_bytes(said)
                    case Exited():
                        status = event.status
        return status, said.decode("utf-8", "replace")

    def console(self) -> str:
        return (self.folder / "console.log").read_bytes()[-4000:].decode("utf-8", "replace")


@asynccontextmanager
async def lab_host(folder: Path, base: Artifacts, *, image: Image, disk: Path) -> AsyncIterator[LabHost]:
    """Boot it; disk is its /root. Ready when its agent serves; gone at the end."""
    folder.mkdir(mode=0o700)
    await ext4.make(folder / "overlay.ext4", size_bytes=2 << 30, programs=base.e2fsprogs)
    modules = modules_disk(image)
    config = GuestConfig(
        hostname="lab",
        root_mode="overlay",
        overlay="/dev/vdb",
        work="/dev/vdc",
        modules="/dev/vdd" if modules else "",  # an older lab image has them in itself
        init="agent",
    )
    drives = (
        Drive(drive_id="root", path=image.rootfs_path, read_only=True),
        Drive(drive_id="overlay", path="overlay.ext4"),
        Drive(drive_id="work", path=str(disk)),
        *([Drive(drive_id="modules", path=modules, read_only=True)] if modules else []),
    )
    async with booted(
        folder, base, config=config, drives=drives, launcher=LabLauncher(), memory_mib=MEMORY_MIB
    ) as host:
        yield host


@asynccontextmanager
async def booted(
    folder: Path,
    base: Artifacts,
    *,
    config: GuestConfig,
    drives: tuple[Drive, ...],
    launcher: DirectLauncher,
    memory_mib: int,
) -> AsyncIterator[LabHost]:
    """A guest of the tests' own making, on QEMU; its files are in folder. Ready when its agent serves."""
    await asyncio.to_thread(build_guest_initrd, base.initramfs(), config, files=[], out=folder / "initrd.img")
    spec = MachineSpec(
        vm_id=VM_ID,
        vm_dir=str(folder),
        vcpu_count=2,
        memory_mib=memory_mib,
        kernel_path=str(base.vmlinux),
        initrd_path="initrd.img",
        boot_args="",
        drives=drives,
        network=(),
    )

    async def bridge() -> str:
        return base.vhost_device_vsock.path

    monitor = await find_qemu("", bridge, kvm_usable=False)
    assert monitor is not None
    ready = ReadyListener(str(folder))
    try:
        await ready.start()
        machine = await monitor.launch(spec, launcher)
        try:
            await machine.configure(spec)
            await machine.start()
            host = LabHost(folder)
            try:
                async with asyncio.timeout(BOOT_TIMEOUT_S):
                    await ready.wait_ready()
            except TimeoutError:
                raise AssertionError(f"the guest does not get ready:\n{host.console()}") from None
            yield host
        finally:
            await machine.close()
    finally:
        await ready.aclose()
        launcher.close()
