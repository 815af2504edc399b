"""The start of a VM: its steps from preflight to `running` (SPEC §2), and the context they share.

Each step's undo is what stop, kill, delete, a failed start and reconcile run as well: there is one
way to remove what a VM has on the host. Steps act on a Subject whose lock is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from functools import partial
from pathlib import Path

from banger.errors import BangerError, ErrorCode
from banger.guest.ready import ReadyListener
from banger.guest.ssh import ensure_host_key
from banger.image.initramfs import build_guest_initrd
from banger.image.kernel import modules_disk
from banger.model.records import Image
from banger.model.states import VMState
from banger.vm.capabilities import Contribution
from banger.vm.guestfiles import guest_config, guest_files
from banger.vm.hostkeys import remember_host
from banger.vm.services import Services
from banger.vm.steps import Step
from banger.vm.subject import Subject
from banger.vmm.protocol import (
    API_SOCKET,
    CONSOLE_LOG,
    METRICS_FILE,
    MONITOR_LOG,
    VSOCK_SOCKET,
    Machine,
    Monitor,
)

LOG_CAP_BYTES = 8 << 20
INITRD_FILE = "initrd.img"


class Start:
    """What the steps of one start hand to each other."""

    def __init__(self, subject: Subject, *, services: Services, ready: ReadyListener) -> None:
        self.subject = subject
        self.services = services
        self.ready = ready
        self.image: Image | None = None
        self.shared_initramfs = ""
        self.monitor: Monitor | None = None
        self.machine: Machine | None = None

    def need_image(self) -> Image:
        if self.image is None:
            raise RuntimeError("the image step has not run")
        return self.image

    def need_machine(self) -> Machine:
        if self.machine is None:
            raise RuntimeError("the machine step has not run")
        return self.machine


class Teardown:
    """What the undo of each step works on. Handles come from the subject: verified before acted on."""

    def __init__(self, subject: Subject, *, services: Services) -> None:
        self.subject = subject
        self.services = services


class BaseStep:
    """A step without an undo of its own."""

    id = ""
    message = ""

    async def do(self, start: Start) -> None:
        raise NotImplementedError

    async def undo(self, down: Teardown) -> None:
        """Nothing to remove."""


class Preflight(BaseStep):
    """Host prerequisites and each capability's own; the image and the monitor are found here."""

    id = "preflight"
    message = "checking the host"

    async def do(self, start: Start) -> None:
        services = start.services
        record = start.subject.record
        start.image = services.images.get(record.image_id)
        start.monitor = await services.find_monitor()
        start.shared_initramfs = str(await services.images.ensure_initramfs(start.image))
        for path in (start.image.rootfs_path, start.image.kernel_path):
            if not os.path.exists(path):
                raise BangerError(
                    ErrorCode.IMAGE_INVALID,
                    f"image {start.image.name}: {path} is missing",
                    hint=f"banger image delete {start.image.name}, then pull it again",
                )
        for capability in services.capabilities:
            await capability.preflight(record)


class VMFolder(BaseStep):
    """VM_DIR, 0700. Its removal belongs to delete alone."""

    id = "vm_dir"
    message = "making the VM's folder"

    async def do(self, start: Start) -> None:
        vm_dir = start.subject.vm_dir
        os.makedirs(vm_dir, mode=0o700, exist_ok=True)
        os.chmod(vm_dir, 0o700)
        await start.subject.set_state(VMState.STARTING)


class Bridge(BaseStep):
    """The instance's bridge: shared by all VMs, so that no single VM's undo removes it."""

    id = "bridge"
    message = "bringing up the bridge"

    async def do(self, start: Start) -> None:
        await start.services.network.prepare(start.subject.record.runtime.guest_ip)


class StaleSockets(BaseStep):
    """Monitors never unlink their sockets, and refuse to start on existing ones."""

    id = "sockets"
    message = "clearing old sockets"

    async def do(self, start: Start) -> None:
        remove_sockets(start.subject.vm_dir)

    async def undo(self, down: Teardown) -> None:
        remove_sockets(down.subject.vm_dir)


class SystemOverlay(BaseStep):
    """The writable file of the root disk, made once and kept for the VM's life."""

    id = "system_overlay"
    message = "making the system overlay"

    async def do(self, start: Start) -> None:
        subject = start.subject
        strategy = start.services.disks.of(subject.record)
        await strategy.ensure_overlay(subject.record, start.need_image())


class RootDisk(BaseStep):
    """What the strategy attaches on the host (loops, dm target); its handles are recorded at once."""

    id = "root_disk"
    message = "preparing the root disk"

    async def do(self, start: Start) -> None:
        subject = start.subject
        strategy = start.services.disks.of(subject.record)
        await strategy.attach(subject.record, start.need_image(), record_handles=subject.record_handles)

    async def undo(self, down: Teardown) -> None:
        subject = down.subject
        strategy = down.services.disks.of(subject.record)
        await strategy.detach(subject.record, subject.handles, record_handles=subject.record_handles)


class GuestFiles(BaseStep):
    """Host name, hosts, resolver, ssh host key: the VM's own archive behind the shared initramfs."""

    id = "guest_config"
    message = "writing the guest's settings"

    async def do(self, start: Start) -> None:
        record = start.subject.record
        layout = start.services.disks.of(record).layout()
        host_key = await ensure_host_key(record.runtime.vm_dir, record.name)
        await remember_host(start.services.paths, record, host_key)
        settings = start.services.settings
        config = guest_config(
            record,
            start.need_image(),
            settings=settings,
            root_mode=layout.root_mode,
            init=record.init,
            work_device=layout.next_device,
            overlay_device=layout.overlay_device,
            modules_device=modules_device(start) if modules_disk(start.need_image()) else "",
        )
        files = guest_files(record, settings=settings, host_key=host_key)
        out = f"{record.runtime.vm_dir}/{INITRD_FILE}"
        await asyncio.to_thread(
            build_guest_initrd, Path(start.shared_initramfs), config, files=files, out=Path(out)
        )


class Capabilities(BaseStep):
    """Capabilities prepare the host, and clean up once the machine has ended."""

    id = "capabilities"
    message = "preparing the disks"

    async def do(self, start: Start) -> None:
        for capability in start.services.capabilities:
            await capability.prepare_host(start.subject, start.need_image())

    async def undo(self, down: Teardown) -> None:
        failures: list[Exception] = []
        for capability in reversed(down.services.capabilities):
            try:
                await capability.cleanup(down.subject)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0] if len(failures) == 1 else ExceptionGroup("capabilities", failures)


class Tap(BaseStep):
    """The VM's tap: its name is recorded before the device is made or taken from the pool. From here on the
    firewall knows the guest, by what has been recorded."""

    id = "tap"
    message = "connecting the network"

    async def do(self, start: Start) -> None:
        subject, network = start.subject, start.services.network
        address = subject.record.runtime.guest_ip
        name = network.choose_tap(subject.id, address)
        await subject.record_handles(tap_device=name)
        await network.make_tap(name, subject.id, guest=address)
        await network.firewall.refresh()

    async def undo(self, down: Teardown) -> None:
        subject = down.subject
        name = subject.handles.tap_device or subject.record.runtime.tap_device
        forget = partial(subject.record_handles, tap_device="")
        await down.services.network.release_tap(name, subject.id, forget=forget)
        await forget()
        await down.services.network.firewall.refresh()


class Logs(BaseStep):
    """The console log of the last start is kept aside; logs begin fresh, for monitors do not append."""

    id = "logs"
    message = "opening the logs"

    async def do(self, start: Start) -> None:
        vm_dir = start.subject.vm_dir
        for name in (CONSOLE_LOG, MONITOR_LOG):
            rotate(f"{vm_dir}/{name}")
        with open(f"{vm_dir}/{METRICS_FILE}", "wb"):
            pass


def remove_sockets(vm_dir: str) -> None:
    """The control and guest sockets and the listeners beside them (`v.sock_*`), in VM_DIR only."""
    with contextlib.suppress(FileNotFoundError), os.scandir(vm_dir) as entries:
        for entry in entries:
            ours = entry.name in (API_SOCKET, VSOCK_SOCKET, "vu.sock") or entry.name.startswith(
                f"{VSOCK_SOCKET}_"
            )
            if ours and not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def rotate(path: str) -> None:
    """path → path.1 (one generation is kept, capped); path is made anew, empty, 0600."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path) > LOG_CAP_BYTES:
            keep_tail(path, LOG_CAP_BYTES)
        os.replace(path, f"{path}.1")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def keep_tail(path: str, limit_bytes: int) -> None:
    """Cut a file of a machine that has ended down to its last limit_bytes."""
    temporary = f"{path}.cut"
    with open(path, "rb") as source, open(temporary, "wb") as target:
        source.seek(-limit_bytes, os.SEEK_END)
        shutil.copyfileobj(source, target)
    os.replace(temporary, path)


def modules_device(start: Start) -> str:
    """The last disk of all, so that it moves none of the others."""
    first = start.services.disks.of(start.subject.record).layout().next_device
    return first[:-1] + chr(ord(first[-1]) + len(contributions(start.services, start.subject).drives))


def contributions(services: Services, subject: Subject) -> Contribution:
    drives = [
        drive
        for capability in services.capabilities
        for drive in capability.contribute_machine(subject.record).drives
    ]
    return Contribution(drives=tuple(drives))


BEFORE_DISK: tuple[Step[Start, Teardown] | tuple[Step[Start, Teardown], ...], ...] = (
    Preflight(),
    VMFolder(),
    StaleSockets(),
    (Bridge(), SystemOverlay()),
)
"""Steps whose failure puts the state back (SPEC §2: steps 1–8)."""

HOST_STEPS: tuple[Step[Start, Teardown] | tuple[Step[Start, Teardown], ...], ...] = (
    (RootDisk(), GuestFiles(), Capabilities(), Tap(), Logs()),
)
"""From the root disk on a failure tears everything down and ends in `error`."""
