"""The steps that make a VM's machine run: launch, configure, start, hear the agent (SPEC §2, 13–18)."""

from __future__ import annotations

import asyncio
import os
import signal

from banger.errors import BangerError, ErrorCode
from banger.guest.ready import ReadyListener
from banger.image.kernel import modules_disk
from banger.model.records import ProcessIdentity, VMHandles
from banger.network.addresses import mac_of
from banger.system.process import is_same, read_pid_file
from banger.vm.logtail import tail
from banger.vm.progresswatch import ProgressWatch
from banger.vm.start import INITRD_FILE, BaseStep, Start, Teardown, contributions
from banger.vm.steps import Step
from banger.vm.subject import Subject
from banger.vmm.protocol import (
    API_SOCKET,
    CONSOLE_LOG,
    MONITOR_LOG,
    MONITOR_ROLE,
    VSOCK_SOCKET,
    Drive,
    Exit,
    MachineSpec,
    NetworkInterface,
)

ROLES = (MONITOR_ROLE, "vsock")


class LaunchMachine(BaseStep):
    """The monitor's processes. Each writes its identity before its program runs (helper.launch)."""

    id = "machine"
    message = "starting the machine"

    async def do(self, start: Start) -> None:
        if start.monitor is None:
            raise RuntimeError("the preflight step has not run")
        await start.ready.start()
        spec = machine_spec(start)
        start.machine = await start.monitor.launch(spec, start.services.helper)
        start.subject.record_processes(start.machine.processes)
        await start.machine.configure(spec)
        await start.machine.start()

    async def undo(self, down: Teardown) -> None:
        """KILL what is verified to be ours; wait until it is gone: the exit frees taps and disks."""
        subject, helper = down.subject, down.services.helper
        left: list[str] = []
        processes = recorded_processes(subject, subject.handles, boot_id=down.services.boot_id)
        for identity in processes:  # all first: they end beside each other
            await helper.signal(identity, signal.SIGKILL)
        for identity in processes:
            if not await helper.wait_gone(identity, timeout_s=down.services.deadlines.killed_s):
                left.append(f"{identity.role} (pid {identity.pid})")
        if left:
            raise BangerError(ErrorCode.CLEANUP_FAILED, f"still running after SIGKILL: {', '.join(left)}")
        for role in ROLES:
            path = f"{subject.vm_dir}/{role}.pid"
            if os.path.exists(path):
                os.unlink(path)
        subject.record_processes(())


class PrivateSockets(BaseStep):
    id = "sockets_private"
    message = "closing the sockets to others"

    async def do(self, start: Start) -> None:
        for name in (API_SOCKET, VSOCK_SOCKET):
            path = f"{start.subject.vm_dir}/{name}"
            if os.path.exists(path):
                os.chmod(path, 0o600)


class WaitAgent(BaseStep):
    """The agent calls; nothing polls the guest. A monitor that ends first is the error."""

    id = "agent"
    message = "booting"

    async def do(self, start: Start) -> None:
        machine, subject = start.need_machine(), start.subject
        exited = asyncio.ensure_future(machine.exited())
        ready = asyncio.ensure_future(start.ready.wait_ready())
        watch = self._watch(start, machine.processes[0])
        try:
            while not ready.done():
                done, _ = await asyncio.wait(
                    {exited, ready}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                if exited in done and not ready.done():
                    raise BangerError(
                        ErrorCode.MONITOR_FAILED,
                        f"the machine ended while it booted: {why_it_ended(start.ready, exited.result())}",
                        details=boot_log(subject.vm_dir),
                        hint=f"banger vm logs {subject.name}",
                    )
                if not ready.done() and (why := watch.overdue()):
                    raise BangerError(
                        ErrorCode.TIMEOUT,
                        f"the guest's agent did not answer: {why}",
                        details=boot_log(subject.vm_dir),
                        hint=f"banger vm logs {subject.name}",
                    )
            await ready
        finally:
            exited.cancel()
            ready.cancel()
            await asyncio.gather(exited, ready, return_exceptions=True)

    @staticmethod
    def _watch(start: Start, monitor: ProcessIdentity) -> ProgressWatch:
        limits = start.services.deadlines
        accelerated = start.monitor is not None and "kvm" in start.monitor.info.features
        return ProgressWatch(
            monitor,
            f"{start.subject.vm_dir}/{CONSOLE_LOG}",
            silence_s=limits.agent_s if accelerated else limits.emulated_silence_s,
            cpu_s=limits.agent_s if accelerated else limits.emulated_silence_s,
            at_most_s=limits.agent_s if accelerated else limits.emulated_at_most_s,
        )


class CapabilitiesFinish(BaseStep):
    id = "capabilities_finish"
    message = "finishing"

    async def do(self, start: Start) -> None:
        for capability in start.services.capabilities:
            await capability.post_start(start.subject)


def recorded_processes(subject: Subject, handles: VMHandles, *, boot_id: str) -> list[ProcessIdentity]:
    """Live processes of this VM that a record names: the handles', and those whose pid file is newer than
    the handles (a crash between their launch and its recording). Verified; the vsock bridge last."""
    found: dict[int, ProcessIdentity] = {}
    if handles.boot_id == boot_id:
        found.update({p.pid: p for p in handles.processes if is_same(p)})
    for role in ROLES:
        identity = read_pid_file(f"{subject.vm_dir}/{role}.pid", role=role)
        if identity is not None and identity.pid not in found and is_same(identity):
            found[identity.pid] = identity
    return sorted(found.values(), key=lambda p: ROLES.index(p.role) if p.role in ROLES else len(ROLES))


def machine_spec(start: Start) -> MachineSpec:
    subject, image = start.subject, start.need_image()
    record = subject.record
    root = start.services.disks.of(record).drives(record, image, handles=subject.handles)
    drives: tuple[Drive, ...] = (*root, *contributions(start.services, subject).drives)
    if modules := modules_disk(image):
        drives += (Drive(drive_id="modules", path=modules, read_only=True),)
    return MachineSpec(
        vm_id=record.id,
        vm_dir=record.runtime.vm_dir,
        vcpu_count=record.spec.vcpu_count,
        memory_mib=record.spec.memory_mib,
        kernel_path=image.kernel_path,
        initrd_path=INITRD_FILE,
        boot_args="",
        drives=drives,
        network=(NetworkInterface(tap=subject.handles.tap_device, mac=mac_of(record.runtime.guest_ip)),),
        guest_cid=record.runtime.vsock_cid,
    )


def why_it_ended(ready: ReadyListener, how: Exit) -> str:
    """The agent's own reason where it gave one, escaped: a guest's words; else the monitor's."""
    message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in ready.ending_message[:500])
    return message or how.reason


def boot_log(vm_dir: str) -> str:
    """The last lines of console and monitor log, for --debug."""
    parts = [(name, tail(f"{vm_dir}/{name}", lines=15)) for name in (CONSOLE_LOG, MONITOR_LOG)]
    return "\n".join(f"--- {name}\n{text}" for name, text in parts if text)


MACHINE_STEPS: tuple[Step[Start, Teardown], ...] = (
    LaunchMachine(),
    PrivateSockets(),
    WaitAgent(),
    CapabilitiesFinish(),
)
