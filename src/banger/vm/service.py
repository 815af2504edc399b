"""VMService: who may do what to which VM, and when (SPEC §2).

The one door of this room: daemon/ calls it, with ids that `resolve` gave. It holds the locks, keeps the
records, and lets Lifecycle do the work. After a crash `open` brings store and host together again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import msgspec

from banger.api.requests import (
    CreateVM,
    KillVM,
    PublishPorts,
    SetVM,
    SetWorkspace,
    UnpublishPorts,
    WhyNet,
)
from banger.errors import BangerError, ErrorCode
from banger.model.defaults import HostCapacity, resolve_spec, spec_line, validate_spec
from banger.model.guestview import GuestFigures, PublishedState, VMPorts
from banger.model.ids import new_vm_id
from banger.model.names import generate_name, validate_name
from banger.model.netwhy import NetWhy
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import VMHealth, VMRecord, VMRuntime, VMSpec, VMStats, now
from banger.model.references import resolve
from banger.model.states import CLAIMS_LIFE, VMState
from banger.model.work import Work
from banger.network.addresses import lowest_free
from banger.system.lockorder import OrderedLock, Rank
from banger.vm.carrierprocess import CarrierProcess
from banger.vm.errors import Aborted, KeepFailed, NoWorkspace, StepFailed
from banger.vm.guestview import GuestView
from banger.vm.hostkeys import forget_host
from banger.vm.keeping import Keeping
from banger.vm.lifecycle import Lifecycle
from banger.vm.live import LiveMachines
from banger.vm.liveness import machine_alive
from banger.vm.locks import ANYBODY, DELETE, DISCARD, KILL, OTHERS, VMLocks, finish
from banger.vm.netwhy import NetWhyService
from banger.vm.owner import owner_of
from banger.vm.planner import Finding
from banger.vm.publishing import Publishing, going_ports, port_of, spec_of, wanted_ports, with_ports
from banger.vm.reconcile import Reconciler
from banger.vm.services import Services
from banger.vm.signals import parse_signal
from banger.vm.start import remove_sockets
from banger.vm.steps import Act, CrashPoint, no_crash
from banger.vm.subject import Subject
from banger.vm.vitals import Vitals
from banger.vm.watch import ExitWatch
from banger.vm.workspaces import workspace_of
from banger.vmm.protocol import API_SOCKET, CONSOLE_LOG, METRICS_FILE, VSOCK_SOCKET

log = logging.getLogger(__name__)

GUEST_CID = 3  # behind a Unix socket per VM every guest can be CID 3


class VMService:
    def __init__(self, services: Services, *, crash_point: CrashPoint = no_crash) -> None:
        self._publishing = Publishing(services.table, CarrierProcess(services.paths.ports_dir))
        services = msgspec.structs.replace(services, capabilities=(*services.capabilities, self._publishing))
        self._services = services
        self._table = services.table
        self._locks = VMLocks()
        self._reserving = OrderedLock(Rank.RESERVATION, "of names and addresses")
        self._crash_point = crash_point
        self._live = LiveMachines(self._machine_ended)
        self._lifecycle = Lifecycle(services, self._live, crash_point=crash_point)
        self._exits = ExitWatch(self._lifecycle)
        self._vitals = Vitals(services, locks=self._locks, live=self._live)
        self._guest_view = GuestView(services)
        self._net_why = NetWhyService(services)
        self._keeping = Keeping(
            services.workspaces,
            services.deadlines,
            work_dir=services.paths.work_dir,
            crash_point=crash_point,
        )
        self._reconciler = Reconciler(
            services,
            lifecycle=self._lifecycle,
            live=self._live,
            crash_point=crash_point,
            carriers=self._publishing.carriers,
        )

    async def open(self) -> None:
        """Reconcile store and host. Raises only what makes the daemon useless."""
        await self._publishing.open()
        await self._reconciler.run(self._subject, locks=self._locks)
        await self._keeping.sweep({record.id for record in self._table.list()})

    async def close(self) -> None:
        """Let go of everything; VMs run on."""
        await self._publishing.close()
        await self._live.close()

    # what there is

    def list(self) -> Sequence[VMRecord]:
        return self._table.list()

    def resolve(self, reference: str) -> VMRecord:
        """Full id, else exact name, else unique id prefix; NOT_FOUND or AMBIGUOUS otherwise."""
        records = {record.id: record for record in self._table.list()}
        return records[resolve(reference, [(r.id, r.name) for r in records.values()], what="VM")]

    # what can be done

    async def create(self, request: CreateVM, progress: Progress) -> VMRecord:
        """An invalid request leaves no row, a cancelled one nothing, and a host that cannot start it
        nothing; a start that fails later leaves an `error` VM."""
        if request.name:
            validate_name(request.name)
        owner = owner_of(request)
        spec = self._spec(request)
        progress(ProgressEvent(step="spec", message=spec_line(spec)))
        self._warn_memory(spec, progress)
        image = await self._services.images.resolve(
            request.image or self._services.settings.default_image_name, progress
        )
        await self._services.disks.check_space()
        chosen = await self._publishing.choose(wanted_ports(request.publish), published=())
        if request.start:
            await self._publishing.try_out(chosen)
        spec = msgspec.structs.replace(spec, published=tuple(map(port_of, chosen)), owner=owner)
        record = await self._reserve(request, spec=spec, image_id=image.id)
        # from here on the client knows what to delete when it is interrupted
        progress(ProgressEvent(step="reserve", message=f"creating {record.name}", vm_id=record.id))
        if not request.start:
            return record
        try:
            return await self.start(record.id, progress)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or self._never_began(record.id):
                limit = 2 * self._services.deadlines.cleanup_s
                await finish(self.delete(record.id, no_progress), deadline_s=limit)
            raise

    async def start(self, vm_id: str, progress: Progress) -> VMRecord:
        async with self._hold(vm_id) as subject, self._locks.abortable(vm_id, subject.name):
            await self._lifecycle.start(subject, progress)
            return subject.record

    async def stop(self, vm_id: str, progress: Progress) -> VMRecord:
        """Its work is kept first; where the guest cannot be asked, from its disk once it has stopped."""
        async with self._hold(vm_id) as subject, self._locks.abortable(vm_id, subject.name):
            await self._stop(subject, progress)
            return subject.record

    async def restart(self, vm_id: str, progress: Progress) -> VMRecord:
        """Stop and start under one lock."""
        async with self._hold(vm_id) as subject, self._locks.abortable(vm_id, subject.name):
            await self._lifecycle.stop(subject, progress)
            await self._lifecycle.start(subject, progress)
            return subject.record

    async def kill(self, vm_id: str, request: KillVM, *, progress: Progress) -> VMRecord:
        signum = parse_signal(request.signal)
        self._locks.abort(vm_id, KILL)
        async with self._hold(vm_id) as subject:
            await self._lifecycle.kill(subject, signum, progress=progress)
            return subject.record

    async def delete(self, vm_id: str, progress: Progress, *, discard_work: bool = False) -> VMRecord:
        """Keep its work, end it if alive, tear down, forget it. What cannot be removed keeps the row, and is
        the error; so does work that cannot be kept, but with discard_work."""
        self._locks.abort(vm_id, DISCARD if discard_work else DELETE)
        async with self._hold(vm_id) as subject:
            await self._remove(subject, progress, discard_work=discard_work)
        await self._after_removal()
        return subject.record

    async def delete_if_not_running(
        self, vm_id: str, progress: Progress, *, discard_work: bool = False
    ) -> VMRecord:
        """For prune: aborts nothing. WRONG_STATE when it runs by the time that it is this one's turn."""
        async with self._hold(vm_id) as subject:
            state = subject.record.state
            if state in CLAIMS_LIFE or machine_alive(subject.handles, boot_id=self._services.boot_id):
                raise BangerError(ErrorCode.WRONG_STATE, f"{subject.name} runs: it was left alone")
            await self._remove(subject, progress, discard_work=discard_work)
        await self._after_removal()
        return subject.record

    async def delete_by_itself(self, vm_id: str, progress: Progress) -> VMRecord:
        """Of a VM with auto_remove whose lease has ended. Where its work cannot be kept it stays, as one that
        is not removed by itself any more, and its last error says why."""
        try:
            return await self.delete(vm_id, progress)
        except KeepFailed as error:
            why = f"not removed: {error.brief}"
            log.warning("%s: %s", vm_id[:8], why)
            async with self._hold(vm_id) as subject:
                await subject.change(lambda record: staying(record, why))
            raise

    # the work in it

    async def set_workspace(self, vm_id: str, request: SetWorkspace) -> VMRecord:
        """What a client has brought into the guest: kept from now on. Replaces an earlier one."""
        workspace = workspace_of(request, vm_id)
        async with self._hold(vm_id) as subject:
            await self._keeping.bring(subject.record, workspace, request.refs)
            with self._act(Act.WORKSPACE_SAVE, subject.name):
                await subject.change(lambda record: msgspec.structs.replace(record, workspace=workspace))
            return subject.record

    async def keep(self, vm_id: str, progress: Progress, *, ignored: bool = False) -> Work:
        """Its work, kept now: of a guest that runs from the guest, else from its disk."""
        async with self._hold(vm_id) as subject, self._locks.abortable(vm_id, subject.name):
            record = subject.record
            if record.workspace is None:
                raise NoWorkspace(record.name)
            if self._lifecycle.alive(subject):
                return await self._keeping.live(record, progress, ignored=ignored)
            if machine_alive(subject.handles, boot_id=self._services.boot_id):
                raise BangerError(
                    ErrorCode.WRONG_STATE,
                    f"{record.name} is {record.state.value}, but its machine is still there",
                    hint=f"banger vm stop {record.name}",
                )
            return await self._keeping.disk(record, progress, ignored=ignored)

    async def keep_work(self, vm_id: str) -> bool:
        """For the rounds: of a guest that runs and has written since, unless somebody holds or wants the VM.
        True when kept. Touches nothing."""
        async with self._locks.hold_if_free(vm_id) as held:
            record = self._table.get(vm_id)
            if not held or record is None or record.workspace is None or not self.is_alive(record):
                return False
            if not self._keeping.is_due(record):
                return False
            try:
                async with self._locks.abortable(vm_id, record.name, by=ANYBODY):
                    await self._keeping.live(record, no_progress)
            except Aborted as error:
                log.info("%s", error.brief)
                return False
            return True

    async def set(self, vm_id: str, request: SetVM, *, progress: Progress) -> VMRecord:
        """Change the spec; what cannot change live applies at the next start, which is said."""
        async with self._hold(vm_id) as subject:
            spec = subject.record.spec
            size = request.work_disk_size_bytes
            if size is not None and size < spec.work_disk_size_bytes:
                raise BangerError(
                    ErrorCode.INVALID_ARGUMENT, f"{subject.name}: a disk can grow, but not shrink"
                )
            changed = msgspec.structs.replace(
                spec,
                vcpu_count=spec.vcpu_count if request.vcpu_count is None else request.vcpu_count,
                memory_mib=spec.memory_mib if request.memory_mib is None else request.memory_mib,
                work_disk_size_bytes=spec.work_disk_size_bytes if size is None else size,
                nat_enabled=spec.nat_enabled if request.nat is None else request.nat,
            )
            validate_spec(changed)
            live, warnings = True, list[str]()
            for capability in self._services.capabilities:
                if changed != spec:
                    live = await capability.apply_change(subject, changed) and live
            try:
                with self._act(Act.SET_SAVE, subject.name):
                    await subject.change(lambda record: msgspec.structs.replace(record, spec=changed))
            finally:  # whatever is saved now is what they follow
                for capability in self._services.capabilities:
                    warnings += await capability.changed(subject, spec)
            live = live and (changed.vcpu_count, changed.memory_mib) == (spec.vcpu_count, spec.memory_mib)
            if not live and self._lifecycle.alive(subject):
                progress(ProgressEvent(step="set", message=f"{subject.name}: applies at the next start"))
            for warning in warnings:
                progress(ProgressEvent(step="warning", message=warning, warning=True))
            return subject.record

    async def publish(self, vm_id: str, request: PublishPorts) -> VMRecord:
        """Stored, and of a VM that runs listened on, all or none. IN_USE where somebody else listens."""
        async with self._hold(vm_id) as subject:
            published = subject.record.spec.published
            chosen = await self._publishing.choose(wanted_ports(request.ports), published=published)
            more = [port for port in map(port_of, chosen) if port not in published]
            alive = self._lifecycle.alive(subject)
            if alive:
                await self._publishing.bind(subject.record, chosen)
            try:
                with self._act(Act.PUBLISH_SAVE, subject.name):
                    await subject.change(lambda record: with_ports(record, (*published, *more)))
            finally:
                await self._follow_ports(subject.record, alive=alive)
            return subject.record

    async def unpublish(self, vm_id: str, request: UnpublishPorts) -> VMRecord:
        """NOT_FOUND for one that is not published, and then none goes. Connections through it end."""
        async with self._hold(vm_id) as subject:
            published = subject.record.spec.published
            gone = going_ports(subject.record, request)
            left = tuple(port for port in published if spec_of(port) not in gone)
            try:
                with self._act(Act.UNPUBLISH_SAVE, subject.name):
                    await subject.change(lambda record: with_ports(record, left))
            finally:
                await self._follow_ports(subject.record, alive=self._lifecycle.alive(subject))
            return subject.record

    def published(self, record: VMRecord) -> tuple[PublishedState, ...]:
        """What the VM publishes, and whether it is listened on now."""
        if not record.spec.published:
            return ()
        return self._publishing.states(record, alive=record.state is VMState.RUNNING)

    async def touch(self, vm_id: str) -> VMRecord:
        """last_touched_at := now."""
        record = self._table.get(vm_id)
        if record is None:
            raise BangerError(ErrorCode.NOT_FOUND, f"no VM {vm_id[:12]}")
        await self._table.touch(vm_id, now())
        return record

    def is_alive(self, record: VMRecord) -> bool:
        return self._lifecycle.alive(self._subject(record))

    async def audit(self) -> Sequence[Finding]:
        """Objects on the host that nothing explains; VMs with an operation under way are not judged."""
        with self._locks.used() as used:
            found = await self._reconciler.audit(busy=used.__contains__)
            kept = self._keeping.findings(busy=bool(used))
            return [*found, *self._publishing.findings(), *kept]

    async def repair(self, findings: Sequence[Finding]) -> Sequence[tuple[Finding, BaseException]]:
        """Remove those that can be and are still there; returns what failed.

        Since the audit a VM may have been started: its findings are looked at again under its lock.
        """
        failures: list[tuple[Finding, BaseException]] = []
        for vm_id in sorted({finding.vm_id for finding in findings if finding.vm_id}):
            those = [finding for finding in findings if finding.vm_id == vm_id]
            async with self._locks.hold_if_free(vm_id) as free:
                if not free:
                    busy = BangerError(ErrorCode.BUSY, f"VM {vm_id[:12]} is busy: it was left alone")
                    failures += [(finding, busy) for finding in those if finding.fix]
                    continue
                found = await self._reconciler.audit(busy=vm_id.__ne__)
                failures += await self._reconciler.fix([f for f in those if f in found])
        async with self._reserving:  # no first VM comes meanwhile to need what none needed
            others = await self.audit()
            failures += await self._reconciler.fix([f for f in findings if not f.vm_id and f in others])
        return failures

    def step_ids(self) -> tuple[str, ...]:
        return tuple(self._lifecycle.step_ids())

    # what it does now

    async def stats(self, vm_id: str) -> VMStats:
        """Taken now and stored; of a dead VM only what its disks take."""
        return await self._vitals.stats(vm_id)

    async def health(self, vm_id: str) -> VMHealth:
        """Within 3 s; a dead VM is not healthy, an agent that fails is an error."""
        return await self._vitals.health(vm_id)

    async def figures(self, vm_id: str) -> GuestFigures | None:
        """The guest's own, within 2 s; None of a dead VM or a guest that does not say. Not stored."""
        return await self._guest_view.figures(vm_id)

    async def ports(self, vm_id: str) -> VMPorts:
        """Who listens in the guest, with links; some seconds at most."""
        seen = await self._guest_view.ports(vm_id)
        record = self._table.get(vm_id)
        return seen if record is None else msgspec.structs.replace(seen, published=self.published(record))

    async def net_why(self, vm_id: str, request: WhyNet) -> NetWhy:
        """What stops the guest's packets to a host; some seconds. Does not touch it."""
        return await self._net_why.ask(vm_id, request.host, port=request.port, protocol=request.protocol)

    async def flush_metrics(self, vm_id: str) -> None:
        await self._vitals.flush_metrics(vm_id)

    async def cap_logs(self, vm_id: str) -> None:
        await self._vitals.cap_logs(vm_id)

    async def set_clock(self, vm_id: str) -> None:
        await self._vitals.set_clock(vm_id)

    async def stop_if_stale(self, vm_id: str, *, after_s: float) -> bool:
        """Stop it when it runs, was not touched for so long, and neither a stream is open
        nor a session runs; True when stopped.

        A VM that is busy is in use. Streams and sessions touch it: its time runs from when the last was seen.
        """
        async with self._locks.hold_if_free(vm_id) as held:
            record = self._table.get(vm_id)
            if not held or record is None or record.state is not VMState.RUNNING:
                return False
            if (now() - record.last_touched_at).total_seconds() < after_s:
                return False
            if await self._vitals.in_use(vm_id):
                await self._table.touch(vm_id, now())
                return False
            log.info("%s: not used for %.0f s, stopping it", record.name, after_s)
            subject = self._subject(record)
            async with self._locks.abortable(vm_id, record.name):
                await self._stop(subject, no_progress)
            return True

    # inside

    async def _stop(self, subject: Subject, progress: Progress) -> None:
        kept = not self._lifecycle.alive(subject) or await self._keeping.before_stop(subject.record, progress)
        await self._lifecycle.stop(subject, progress)
        if not kept:
            await self._keeping.after_stop(subject.record, progress)

    async def _remove(self, subject: Subject, progress: Progress, *, discard_work: bool) -> None:
        if not discard_work and subject.record.workspace is not None:
            await self._keep_before_removal(subject, progress)
        progress(ProgressEvent(step="delete", message=f"deleting {subject.name}"))
        await self._lifecycle.tear_down(subject, VMState.STOPPED, last_error=None, durable=False)
        try:
            with self._act(Act.DELETE_FOLDER, subject.name):
                await asyncio.to_thread(remove_folder, subject.vm_dir)
            with self._act(Act.DELETE_ROW, subject.name):
                await self._table.delete(subject.id)
        except StepFailed as error:
            if self._table.get(subject.id) is not None:  # its disks may be gone: not `stopped`
                await subject.set_state(VMState.ERROR, last_error=error.brief)
            raise
        await forget_host(self._services.paths, subject.id)
        await self._keeping.after_removal(subject.record, progress, discard=discard_work)

    async def _keep_before_removal(self, subject: Subject, progress: Progress) -> None:
        """A kill ends this, or a removal that discards the work; the VM is there then."""

        async def end() -> None:
            if subject.record.state in CLAIMS_LIFE or not subject.handles.is_empty():
                await self._lifecycle.tear_down(subject, VMState.STOPPED, last_error=None)

        alive = self._lifecycle.alive(subject)
        async with self._locks.abortable(subject.id, subject.name, by=(KILL, DISCARD)):
            await self._keeping.before_removal(subject.record, progress, alive=alive, end=end)

    async def _after_removal(self) -> None:
        async with self._reserving:  # a VM that comes meanwhile would find the bridge ready, and then gone
            last = self._table.is_empty()
            if last:
                await self._services.network.shutdown()
        if not last:
            self._services.network.warm()

    async def _follow_ports(self, record: VMRecord, *, alive: bool) -> None:
        """What the store says counts: a write that was cancelled is done all the same."""
        stored = self._table.get(record.id) or record
        following = self._publishing.follow(stored, alive=alive)
        await finish(following, deadline_s=self._services.deadlines.cleanup_s)

    def _never_began(self, vm_id: str) -> bool:
        """A start that failed before it made a disk put the state back: there is nothing to keep."""
        record = self._table.get(vm_id)
        return record is not None and record.state is VMState.CREATED

    def _subject(self, record: VMRecord) -> Subject:
        return Subject(record, table=self._table, cache=self._services.cache)

    @asynccontextmanager
    async def _hold(self, vm_id: str) -> AsyncIterator[Subject]:
        """The VM under its lock, read again now that nobody else changes it. The rounds give way."""
        self._locks.abort(vm_id, OTHERS)
        async with self._locks.hold(vm_id):
            record = self._table.get(vm_id)
            if record is None:
                raise BangerError(ErrorCode.NOT_FOUND, f"no VM {vm_id[:12]}: it was deleted meanwhile")
            yield self._subject(record)

    async def _machine_ended(self, vm_id: str, _how: object, said: str) -> None:
        """The monitor has gone without our doing: poweroff, reboot, panic, crash."""
        async with self._locks.hold(vm_id):
            record = self._table.get(vm_id)
            if record is None or record.state is not VMState.RUNNING:
                return
            subject = self._subject(record)
            async with self._locks.abortable(vm_id, record.name):
                await self._exits.handle(subject, said)

    def _spec(self, request: CreateVM) -> VMSpec:
        return resolve_spec(
            self._services.settings.vm_defaults,
            HostCapacity(cpus=os.cpu_count() or 0, memory_bytes=memory_bytes()),
            vcpu_count=request.vcpu_count,
            memory_mib=request.memory_mib,
            work_disk_size_bytes=request.work_disk_size_bytes,
            system_overlay_size_bytes=request.system_overlay_size_bytes,
            nat=request.nat,
        ).spec

    def _warn_memory(self, spec: VMSpec, progress: Progress) -> None:
        """When the memory promised to running VMs would pass the host's."""
        promised = self._table.promised_mib()
        host_mib = memory_bytes() >> 20
        if host_mib and promised + spec.memory_mib > host_mib:
            progress(
                ProgressEvent(
                    step="warning",
                    warning=True,
                    message=f"VMs are promised {promised + spec.memory_mib} MiB of the host's {host_mib}",
                )
            )

    async def _reserve(self, request: CreateVM, *, spec: VMSpec, image_id: str) -> VMRecord:
        """Name, address and row, under one short lock."""
        services = self._services
        async with self._reserving:
            taken, used = self._table.taken()
            name = request.name or generate_name(taken)
            if name in taken:
                raise BangerError(
                    ErrorCode.ALREADY_EXISTS,
                    f"a VM named {name} exists already",
                    hint=f"choose another name, or: banger vm delete {name}",
                )
            address = lowest_free(services.settings.bridge_ip, services.settings.cidr, used=used)
            vm_id = new_vm_id()
            vm_dir = services.paths.vm_dir(vm_id)
            moment = now()
            record = VMRecord(
                id=vm_id,
                name=name,
                image_id=image_id,
                state=VMState.CREATED,
                created_at=moment,
                updated_at=moment,
                last_touched_at=moment,
                spec=spec,
                auto_remove=request.auto_remove,
                init="" if request.init == "auto" else request.init,
                runtime=VMRuntime(
                    guest_ip=address,
                    api_sock_path=f"{vm_dir}/{API_SOCKET}",
                    vsock_path=f"{vm_dir}/{VSOCK_SOCKET}",
                    vsock_cid=GUEST_CID,
                    log_path=f"{vm_dir}/{CONSOLE_LOG}",
                    metrics_path=f"{vm_dir}/{METRICS_FILE}",
                    dns_name=f"{name}.vm",
                    vm_dir=vm_dir,
                    system_overlay_path=services.disks.overlay_path(vm_dir),
                    work_disk_path=f"{vm_dir}/work.ext4",
                ),
            )
            try:
                with self._act(Act.CREATE_RESERVE, name):
                    await self._table.insert(record)
            except BaseException:
                # a write that was cancelled is done all the same
                if self._table.get(vm_id) is not None:
                    await finish(self._table.delete(vm_id), deadline_s=services.deadlines.cleanup_s)
                raise
        return record

    @contextmanager
    def _act(self, act: Act, name: str) -> Iterator[None]:
        """Between its two crash points; what the system refuses is named by it, like a step's failure."""
        operation, part = act.split(":")
        try:
            self._crash_point(f"{act}:before")
            yield
            self._crash_point(f"{act}:after")
        except OSError as error:
            log_path = self._services.paths.daemon_log
            raise StepFailed(f"{operation} {name}", part, cause=error, log_path=log_path) from error


def staying(record: VMRecord, why: str) -> VMRecord:
    """One that does not go by itself any more."""
    runtime = msgspec.structs.replace(record.runtime, last_error=why)
    return msgspec.structs.replace(record, auto_remove=False, runtime=runtime)


def remove_folder(vm_dir: str) -> None:
    """VM_DIR and all in it. Symlinks are removed, never followed."""
    remove_sockets(vm_dir)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(vm_dir)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
