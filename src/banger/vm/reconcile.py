"""Daemon start: store, scratch files and host are brought together again (SPEC §2, reconcile).

Observe, plan, apply. A VM that runs is adopted, one that does not is torn down with what could be
recovered of its handles; then marked objects that belong to no VM go. One VM's failure is logged
and the others go on. `audit` is the same observation and plan with nothing applied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set

import msgspec

from banger.errors import BangerError
from banger.guest.ready import ReadyListener
from banger.helper.interface import Observed
from banger.model.records import ProcessIdentity, VMHandles, VMRecord
from banger.model.states import VMState
from banger.system.process import is_same
from banger.vm.executor import execute
from banger.vm.handles import read_scratch
from banger.vm.hostkeys import restore_hosts
from banger.vm.lifecycle import Lifecycle
from banger.vm.live import LiveMachines
from banger.vm.locks import VMLocks
from banger.vm.planner import Finding, Fix, Plan, Verdict, VMPlan, VMView, World, plan
from banger.vm.services import Services
from banger.vm.steps import CrashPoint, no_crash
from banger.vm.subject import Subject

log = logging.getLogger(__name__)

MakeSubject = Callable[[VMRecord], Subject]


class Reconciler:
    def __init__(
        self,
        services: Services,
        *,
        lifecycle: Lifecycle,
        live: LiveMachines,
        crash_point: CrashPoint = no_crash,
        carriers: Callable[[], frozenset[ProcessIdentity]] = frozenset,
    ) -> None:
        self._services = services
        self._carriers = carriers
        self._crash_point = crash_point
        self._lifecycle = lifecycle
        self._live = live

    async def run(self, make_subject: MakeSubject, *, locks: VMLocks) -> None:
        """locks: of VMs that are adopted and end meanwhile, which is handled beside this."""
        services = self._services
        records = {record.id: record for record in services.table.list()}
        views = tuple(self._scratch_view(record) for record in records.values())
        observed = await services.helper.observe(vms_dir=services.paths.vms_dir)
        world = self._world(views, observed, explained=services.network.pool_taps())
        decided = plan(msgspec.structs.replace(world, firewall=bool(records)))
        for vm in decided.vms:
            subject = make_subject(records[vm.vm_id])
            try:
                await self._apply(subject, vm)
            except Exception:
                log.exception("reconcile of %s failed; it goes on with the others", subject.name)
        await self._seed(decided)
        services.network.seed({link.name for link in await services.helper.list_links()})
        await restore_hosts(services.paths, services.table.list())
        with locks.used() as used:
            findings = await self.audit(busy=used.__contains__)
            # a folder that no row explains may hold somebody's disks: `host audit --fix` alone removes it
            removable = [f for f in findings if f.fix and f.fix is not Fix.REMOVE_FOLDER]
            for vm_id in sorted({f.vm_id for f in removable} - {""} - used):
                async with locks.hold_if_free(vm_id) as free:
                    if free:
                        await self.fix([f for f in removable if f.vm_id == vm_id])
            await self.fix([f for f in removable if not f.vm_id])
        for finding in findings:
            if finding not in removable:
                log.warning("%s %s: %s", finding.kind, finding.name, finding.problem)

    async def _seed(self, decided: Plan) -> None:
        """Capabilities hear of the VMs that run on; one capability's failure is not another's."""
        kept = {vm.vm_id for vm in decided.vms if vm.verdict is Verdict.KEEP}
        running = [
            record
            for record in self._services.table.list()
            if record.id in kept and record.state is VMState.RUNNING
        ]
        for capability in self._services.capabilities:
            try:
                await capability.seed(running)
            except Exception:
                log.exception("%s: the VMs that run on are not taken up", capability.name)

    async def audit(self, *, busy: Callable[[str], bool]) -> list[Finding]:
        """What the host shows and nothing explains, judged by this daemon's own handles.

        A look takes its time, and VMs come, go and change meanwhile. busy: asked after it, whether one was
        at any time since audit was called.
        """
        services = self._services
        before = {record.id: record for record in services.table.list()}
        taps = {vm_id: services.cache.get(vm_id).tap_device for vm_id in before}
        explained = set(services.network.pool_taps())
        firewall = services.network.firewall
        tables = firewall.expected()
        observed = await services.helper.observe(vms_dir=services.paths.vms_dir)
        after = {record.id: record for record in services.table.list()}
        explained |= services.network.pool_taps()
        views = []
        for vm_id, record in {**before, **after}.items():
            handles = services.cache.get(vm_id)
            changing = busy(vm_id) or vm_id not in before or vm_id not in after
            if changing:  # a pool's tap on its way to or from the VM is marked as the pool's
                explained |= {taps.get(vm_id, ""), handles.tap_device}
            views.append(self._view(record, handles, busy=changing))
        problem, forwarding = await firewall.drift()
        world = msgspec.structs.replace(
            self._world(tuple(views), observed, explained=explained),
            firewall=tables or firewall.expected(),
            firewall_problem=problem,
            forwarding_problem=forwarding,
            forwarding_changed=firewall.forwarding_changed(),
        )
        decided: Plan = plan(world)
        return list(decided.findings)

    async def fix(self, findings: Sequence[Finding]) -> list[tuple[Finding, BaseException]]:
        """Apply what can be; returns what failed."""
        return await execute(
            findings,
            helper=self._services.helper,
            firewall=self._services.network.firewall,
            vms_dir=self._services.paths.vms_dir,
            work_dir=self._services.paths.work_dir,
            crash_point=self._crash_point,
        )

    def _world(self, views: tuple[VMView, ...], observed: Observed, *, explained: Set[str]) -> World:
        services = self._services
        return World(
            instance=services.instance,
            vms=views,
            observed=observed,
            bridges=services.network.bridges,
            vms_dir=services.paths.vms_dir,
            images_dir=services.paths.images_dir,
            pool_taps=frozenset(explained),
            carriers=self._carriers(),
        )

    def _scratch_view(self, record: VMRecord) -> VMView:
        read = read_scratch(record.runtime.vm_dir)
        if read.problem:
            log.warning("%s: %s; using the mirror", record.name, read.problem)
        return self._view(record, read.handles, busy=False)

    def _view(self, record: VMRecord, handles: VMHandles, *, busy: bool) -> VMView:
        live: tuple[ProcessIdentity, ...] = ()
        if handles.boot_id == self._services.boot_id:
            live = tuple(p for p in handles.processes if is_same(p))
        return VMView(record=record, scratch=handles, live_processes=live, busy=busy)

    async def _apply(self, subject: Subject, vm: VMPlan) -> None:
        if vm.verdict is Verdict.REST:
            await subject.clear_handles()  # damaged, of another boot, or of processes that are gone
            return
        subject.seed_handles(vm.handles)
        if vm.verdict is Verdict.KEEP:
            try:
                await self._adopt(subject)
                log.info("%s: found running, kept", subject.name)
                return
            except (BangerError, OSError) as error:
                # it lives, so it is kept; without its control socket it can still be killed and deleted
                log.warning("%s: found running, but not adopted: %s", subject.name, error)
                return
        state = subject.record.state
        target = VMState.ERROR if state is VMState.ERROR else VMState.STOPPED
        await self._lifecycle.tear_down(subject, target, last_error=vm.why or None)
        log.info("%s: %s", subject.name, vm.why or "cleaned up")

    async def _adopt(self, subject: Subject) -> None:
        monitor = await self._services.find_monitor_of(subject.vm_dir)
        machine = await monitor.adopt(subject.vm_dir, subject.handles.processes)
        ready = ReadyListener(subject.vm_dir)
        try:
            await ready.start()
        except BaseException:
            await machine.close()
            raise
        self._live.add(subject.id, machine, ready)
