"""The lifecycle on a model host: any order of operations, with a fault or a crash at any call.

SPEC §2 and §9 as properties: what lives is left alone, what is not ours is left alone, every VM runs whole
or can be started, a reconcile converges, and delete leaves nothing. `BANGER_TEST_EXAMPLES=2000` runs longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from banger.api.requests import CreateVM, KillVM, SetVM
from banger.errors import BangerError
from banger.helper import marks
from banger.model.progress import no_progress
from banger.model.records import VMHandles, VMRecord
from banger.model.states import VMState
from banger.network.addresses import mac_of
from banger.vm.handles import SCRATCH_FILE, read_scratch
from banger.vm.planner import Plan, Verdict
from tests.fakes.modelhost import Dead, Fault, ModelHost
from tests.fakes.modellife import MIB, Life, guest_ends, led_to, make_home

T = TypeVar("T")
USUAL = 250
EXAMPLES = int(os.environ.get("BANGER_TEST_EXAMPLES", str(USUAL)))
STEPS = 24
MOST_VMS = 4
OTHERS = "ffffffffffffffff"
FOREIGN = "somebody"

KINDS = ("ENOSPC", "EBUSY", "EPERM", "crash", "crash", "cancel", "monitor dies")
a_fault = st.builds(Fault, place=st.integers(0, 1000), kind=st.sampled_from(KINDS), after=st.booleans())
faults = a_fault | st.none() | a_fault
slots = st.integers(0, MOST_VMS - 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Thousands of failures that are meant to be: their log lines are not written."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class Lifecycles(RuleBasedStateMachine):
    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="model-", dir=self.template.parent))
        shutil.copytree(self.template, self.folder / "home")
        self.host = ModelHost(self.folder / "home")
        self.plans: list[Plan] = []
        self.patch = pytest.MonkeyPatch()
        led_to(self.host, self.patch, self.plans)
        self.loop = asyncio.new_event_loop()
        self.life: Life | None = None
        self.root_disk = "auto"
        self.dirty = False  # a fault has happened since the last reconcile
        self.named = 0
        self.foreign: list[tuple[str, str]] = []
        self.targets: frozenset[str] = frozenset()
        self.known: frozenset[str] | None = None  # while one is created, which is whichever is not known
        self.host.protected = self.is_protected

    # machinery

    @property
    def vms(self) -> list[VMRecord]:
        assert self.life is not None
        return sorted(self.life.vms.list(), key=lambda record: record.name)

    def is_protected(self, vm_id: str) -> bool:
        """It runs, and the operation under way is not about it."""
        if self.life is None or self.host.dead:
            return False
        record = next((vm for vm in self.life.services.table.list() if vm.id.startswith(vm_id)), None)
        if record is None or record.id in self.targets or record.state is not VMState.RUNNING:
            return False
        if self.known is not None and record.id not in self.known:
            return False
        return self.host.monitor_in(record.runtime.vm_dir) is not None

    def wait(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    async def settle(self) -> None:
        """Until nothing goes on but the watching of machines that live."""
        for _ in range(20_000):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            watched = sum(len(waiting) for waiting in self.host.waiting.values())
            if len(others) <= watched:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"it does not come to rest: {asyncio.all_tasks()}")

    def during(
        self,
        what: str,
        *works: Callable[[Life], Awaitable[object]],
        fault: Fault | None,
        targets: frozenset[str],
    ) -> list[BaseException | None]:
        """Do them at the same time; what became of each. A daemon that was killed is followed by the next."""
        life = self.life
        assert life is not None
        host, self.targets = self.host, targets

        async def all_of_them() -> list[BaseException | None]:
            tasks = [asyncio.ensure_future(work(life)) for work in works]
            host.task = asyncio.ensure_future(tasks[0])
            host.arm(fault, operation=what)
            await asyncio.wait(tasks)
            if not host.dead:
                await self.settle()
            return [asyncio.CancelledError() if task.cancelled() else task.exception() for task in tasks]

        outcomes = self.wait(all_of_them())
        happened = host.disarm()
        for outcome in outcomes:
            assert outcome is None or host.dead or self.is_told(outcome), repr(outcome)
        if host.dead:
            self.next_life(fault=None)
        else:
            self.dirty = self.dirty or happened
            self.targets, self.known = frozenset(), None
            self.check()
        return outcomes

    @staticmethod
    def is_told(error: BaseException) -> bool:
        """What a user may be told; anything else is a mistake of the program's."""
        return isinstance(error, BangerError | OSError | asyncio.CancelledError)

    def end_life(self) -> None:
        """Of a daemon that was killed, or closes: its tasks unwind."""
        life, self.life = self.life, None
        if life is None:
            return

        async def end() -> None:
            await life.end()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        self.wait(end())
        self.host.waiting.clear()
        self.host.listening = 0
        if self.host.dead:
            self.host.revive()

    def next_life(self, *, fault: Fault | None) -> None:
        """The daemon starts, reconcile included; when that fails or is its end, once more."""
        self.end_life()
        for this_time in (fault, None):
            life = self.wait(Life.begin(self.host, self.root_disk))
            self.life = life
            self.targets, self.known = frozenset(), None
            self.host.arm(this_time, operation="open")
            problem = self.wait(self.opened(life))
            self.dirty = self.host.disarm()
            if not self.host.dead and problem is None:
                break
            assert this_time is not None, repr(problem)
            assert self.host.dead or self.is_told(problem or Dead()), repr(problem)
            self.end_life()
        assert self.life is not None
        self.check()

    async def opened(self, life: Life) -> BaseException | None:
        self.host.task = asyncio.ensure_future(life.vms.open())
        await asyncio.wait([self.host.task])
        if not self.host.dead:
            await self.settle()
        return asyncio.CancelledError() if self.host.task.cancelled() else self.host.task.exception()

    # what can be done

    @initialize(root_disk=st.sampled_from(("dm-snapshot", "guest-overlay")), running=st.integers(0, 2))
    def begin(self, root_disk: str, running: int) -> None:
        self.root_disk = root_disk
        self.next_life(fault=None)
        for _ in range(running):
            self.create(fault=None, start=True)

    @rule(fault=faults, start=st.booleans())
    def create(self, fault: Fault | None, start: bool) -> None:
        if len(self.vms) >= MOST_VMS:
            return
        self.named += 1
        request = CreateVM(name=f"vm{self.named}", start=start, nat=self.named % 2 == 0)
        self.known = known = frozenset(vm.id for vm in self.vms)
        (outcome,) = self.during(
            "create" if start else "reserve",
            lambda life: life.vms.create(request, no_progress),
            fault=fault,
            targets=frozenset(),
        )
        made = [vm for vm in self.vms if vm.id not in known]
        if fault is None and not self.in_the_way(outcome):
            assert outcome is None, repr(outcome)
            assert [vm.state for vm in made] == [VMState.RUNNING if start else VMState.CREATED]

    @precondition(lambda self: bool(self.vms))
    @rule(slot=slots, choice=st.integers(0, 3), fault=a_fault, again=st.booleans())
    def operate_badly(self, slot: int, choice: int, fault: Fault, again: bool) -> None:
        """Something that has something to do, and does not get through. again: the next start does."""
        vm = self.vms[slot % len(self.vms)]
        useful = ("stop", "restart", "delete", "kill") if vm in self.living() else ("start", "delete") * 2
        self.operate(slot=slot, what=useful[choice], fault=fault)
        if again and vm.id in [one.id for one in self.vms]:
            self.operate_until_started(vm)

    @precondition(lambda self: bool(self.vms))
    @rule(
        slot=slots,
        what=st.sampled_from(("start", "start", "stop", "kill", "restart", "delete", "set")),
        fault=faults,
    )
    def operate(self, slot: int, what: str, fault: Fault | None) -> None:
        vm = self.vms[slot % len(self.vms)]
        (outcome,) = self.during(what, operation(what, vm.id), fault=fault, targets=frozenset({vm.id}))
        if fault is not None or self.in_the_way(outcome):
            return
        assert outcome is None, repr(outcome)
        found = [one.state for one in self.vms if one.id == vm.id]
        expected = {
            "start": [VMState.RUNNING],
            "restart": [VMState.RUNNING],
            "stop": [VMState.STOPPED],
            "kill": [VMState.STOPPED],
            "delete": [],
        }
        assert found == expected.get(what, [vm.state])

    @precondition(lambda self: bool(self.vms))
    @rule(
        slot=slots,
        first=st.integers(0, 1),
        second=st.sampled_from(("kill", "delete", "start", "stop", "set", "audit", "repair")),
        late=st.integers(0, 100),
        fault=st.none() | st.none() | a_fault,
    )
    def at_the_same_time(self, slot: int, first: int, second: str, late: int, fault: Fault | None) -> None:
        vm = self.vms[slot % len(self.vms)]
        one = ("restart", "stop")[first] if vm in self.living() else "start"
        late = (late + self.host.total) * 2654435761 % (1 << 32) % 100

        looks = second in ("audit", "repair")

        async def the_one(life: Life) -> object:
            await ticks(late % 12 if looks else 0)
            return await operation(one, vm.id)(life)

        async def the_other(life: Life) -> object:
            await ticks(late % 5 if looks else late)
            if not looks:
                return await operation(second, vm.id)(life)
            found = [finding for finding in await life.vms.audit() if finding.fix]
            # what comes, goes or changes while it looks is no finding
            assert self.dirty or fault is not None or not found, found
            return await life.vms.repair(found) if second == "repair" else found

        outcomes = self.during(f"{one} {second}", the_one, the_other, fault=fault, targets=frozenset({vm.id}))
        if fault is None and second == "delete" and not self.in_the_way(outcomes[1]):
            assert outcomes[1] is None, repr(outcomes[1])
            assert vm.id not in [one.id for one in self.vms]

    @precondition(lambda self: bool(self.living()))
    @rule(slot=slots, saying=st.sampled_from(("", "poweroff", "reboot")), fault=faults)
    def guest_ends(self, slot: int, saying: str, fault: Fault | None) -> None:
        living = self.living()
        vm = living[slot % len(living)]

        async def end(life: Life) -> None:
            guest_ends(self.host, life, vm_id=vm.id, saying=saying)

        # the watcher's work is not a task that somebody could cancel
        if fault is not None and fault.kind == "cancel":
            fault = None
        self.during("end", end, fault=fault, targets=frozenset({vm.id}))
        found = next(one.state for one in self.vms if one.id == vm.id)
        if fault is None and saying:
            expected = {"poweroff": VMState.STOPPED, "reboot": VMState.RUNNING}[saying]
            assert found in (expected, VMState.ERROR if self.foreign else expected)

    @precondition(lambda self: bool(self.living()))
    @rule(slot=slots)
    def vsock_bridge_dies(self, slot: int) -> None:
        """The guest runs on, and can be stopped no other way than by its button."""
        living = self.living()
        vm_dir = living[slot % len(living)].runtime.vm_dir
        for process in list(self.host.processes.values()):
            if process.cwd == vm_dir and process.role == "vsock" and process.alive:
                self.host.end(process.pid)
        self.check()

    @rule(fault=faults)
    def daemon_is_killed(self, fault: Fault | None) -> None:
        self.host.crash()
        self.next_life(fault=fault)

    @rule()
    def daemon_restarts(self) -> None:
        self.next_life(fault=None)

    @rule(fault=faults, others=st.integers(0, 3))
    def host_reboots(self, fault: Fault | None, others: int) -> None:
        self.host.crash()
        self.end_life()
        self.host.reboot()
        self.foreign.clear()
        for number in range(others):  # pids and start times are given out again
            self.host.spawn(f"/home/{FOREIGN}", (f"/usr/bin/other-{number}",))
        self.next_life(fault=fault)

    @precondition(lambda self: bool(self.vms))
    @rule(slot=slots, text=st.sampled_from((None, "", "{ not json", "[]", '{"processes":[{}]}')))
    def scratch_file_is_lost(self, slot: int, text: str | None) -> None:
        """The daemon is killed, and a scratch file is gone or damaged when the next one looks."""
        path = Path(self.vms[slot % len(self.vms)].runtime.vm_dir, SCRATCH_FILE)
        self.host.crash()
        self.end_life()
        if path.exists():
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        self.next_life(fault=None)

    @rule(slot=slots, kind=st.sampled_from(("tap", "marked tap", "pool", "dm", "loop", "process", "table")))
    def stranger_appears(self, slot: int, kind: str) -> None:
        """Something with our names, or over our files, and without our mark."""
        host, vms = self.host, self.vms
        if not vms or len(self.foreign) >= 6:
            return
        vm = vms[slot % len(vms)]
        taken = {link.name for link in host.links.values()}
        match kind:
            case "tap" | "marked tap":
                name = f"tap-fc-{vm.id[:8]}"
                if name in taken:
                    return
                alias = marks.link_alias(OTHERS, vm.id, "tap") if kind == "marked tap" else ""
                self.foreign.append(("link", host.add_link(name, kind="tun", alias=alias).name))
            case "pool":
                name = f"tap-pool-{slot}"
                if name not in taken:
                    self.foreign.append(("link", host.add_link(name, kind="tun").name))
            case "dm":
                name = f"fc-rootfs-{vm.id[:8]}"
                if name not in host.dms:
                    self.foreign.append(("dm", host.add_dm(name, f"BANGER-{OTHERS}-{vm.id}").name))
            case "loop":
                path = f"{host.home}/state/images/{'ab' * 32}/rootfs.ext4"
                self.foreign.append(("loop", host.add_loop(path, path)))
            case "process":
                self.foreign.append(("process", str(host.spawn(vm.runtime.vm_dir, ("/bin/bash",)).pid)))
            case _:
                host.tables["inet", f"banger_{OTHERS}"] = ""
                self.foreign.append(("table", f"banger_{OTHERS}"))

    @rule(slot=slots, kind=st.sampled_from(("tap", "bridge port", "loop", "dm", "process", "socket")))
    def orphan_appears(self, slot: int, kind: str) -> None:
        """Something with our mark that no VM explains: the next reconcile takes it away."""
        host, life = self.host, self.life
        assert life is not None
        instance, lost = life.services.instance, f"{'e' * 63}{slot}"
        name = f"tap-fc-e{slot}"
        folder = Path(life.services.paths.vm_dir(lost))
        if any(link.name == name for link in host.links.values()):
            return
        match kind:
            case "tap" | "bridge port":
                bridge = next((i for i, link in host.links.items() if link.kind == "bridge"), 0)
                master = bridge if kind == "bridge port" else 0
                alias = marks.link_alias(instance, lost, "tap")
                host.add_link(name, kind="tun", alias=alias, master=master)
            case "loop":
                path = f"{life.services.paths.images_dir}/{'ab' * 32}/rootfs.ext4"
                host.add_loop(path, marks.loop_label(instance, lost))
            case "dm":
                if f"fc-rootfs-{lost[:8]}" not in host.dms:
                    host.add_dm(f"fc-rootfs-{lost[:8]}", marks.dm_uuid(instance, lost))
            case "process":
                host.spawn(str(folder), ("/opt/firecracker",), role="monitor")
            case _:
                if not (life.services.paths.vms_dir and self.vms):
                    return
                path = f"{self.vms[slot % len(self.vms)].runtime.vm_dir}"
                if os.path.isdir(path) and not os.path.exists(f"{path}/v.sock_9"):
                    os.mknod(f"{path}/v.sock_9", 0o140600)
        self.dirty = True

    # what must be true

    def living(self) -> list[VMRecord]:
        return [vm for vm in self.vms if self.host.monitor_in(vm.runtime.vm_dir) is not None]

    def in_the_way(self, outcome: BaseException | None) -> bool:
        """A stranger has the name of what would be made: that is an error for once."""
        return outcome is not None and bool(self.foreign) and "is not this banger's" in str(outcome)

    def check(self) -> None:
        """After every rule. While a fault's traces are about, only what holds at all times."""
        assert self.life is not None
        assert not self.host.violations, self.host.violations
        self.check_strangers()
        for vm in self.vms:
            machines = [p for p in self.host.processes.values() if p.cwd == vm.runtime.vm_dir and p.drives]
            assert len(machines) <= 1, f"two machines write to the disks of {vm.name}"
            if self.life.vms.is_alive(vm):
                self.check_whole(vm)
        if not self.dirty:
            self.check_rest()

    def check_strangers(self) -> None:
        host = self.host
        there = {
            *(("link", link.name) for link in host.links.values() if OTHERS in link.alias or not link.alias),
            *(("dm", dm.name) for dm in host.dms.values() if OTHERS in dm.uuid),
            *(("loop", loop.device) for loop in host.loops.values() if loop.label == loop.backing_file),
            *(("process", str(p.pid)) for p in host.processes.values() if p.alive and not p.role),
            *(("table", name) for _, name in host.tables),
        }
        assert not [one for one in self.foreign if one not in there]

    def check_whole(self, vm: VMRecord) -> None:
        """It runs, and all that it needs is there."""
        host, life = self.host, self.life
        assert life is not None
        known = life.services.cache.get(vm.id)
        link = next((one for one in host.links.values() if one.name == known.tap_device), None)
        assert link is not None, f"{vm.name} runs without its tap {known.tap_device!r}"
        guarded = host.tables["bridge", marks.nft_table(life.services.instance)]
        assert f'"{link.name}" . {mac_of(vm.runtime.guest_ip)} . {vm.runtime.guest_ip}' in guarded, vm.name
        assert link.alias == marks.link_alias(life.services.instance, vm.id, "tap")
        bridge = host.links[link.master]
        assert (bridge.kind, bridge.name) == ("bridge", life.network.bridges.of(vm.runtime.guest_ip))
        assert f'"{bridge.name}"' in host.tables["inet", marks.nft_table(life.services.instance)]
        monitor = known.process("monitor")
        assert monitor is not None
        machine = host.same(monitor)
        assert machine is not None
        assert machine.tap == link.name
        assert machine.cwd == vm.runtime.vm_dir
        if self.root_disk == "dm-snapshot":
            dm = host.dms[known.dm_name]
            assert dm.device in machine.drives
            assert (known.base_loop in host.loops, known.cow_loop in dm.uses) == (True, True)
        assert read_scratch(vm.runtime.vm_dir).handles == known

    def check_rest(self) -> None:
        """Every VM runs or rests, nothing is there that no VM explains, and the audit agrees."""
        host, life = self.host, self.life
        assert life is not None
        instance = life.services.instance
        running = set()
        for vm in self.vms:
            assert vm.state in (VMState.CREATED, VMState.STOPPED, VMState.ERROR, VMState.RUNNING), vm
            assert life.vms.is_alive(vm) is (vm.state is VMState.RUNNING), vm
            if vm.state is VMState.RUNNING:
                running.add(vm.id)
                continue
            assert life.services.cache.get(vm.id).is_empty(), vm
            assert read_scratch(vm.runtime.vm_dir).handles == VMHandles(), vm
            runtime = vm.runtime
            mirror = (
                runtime.tap_device,
                runtime.base_loop,
                runtime.cow_loop,
                runtime.dm_name,
                runtime.dm_dev,
            )
            assert not any(mirror), vm
        assert host.listening == sum(life.vms.is_alive(vm) for vm in self.vms)
        owners = [*self.owners(instance)]
        assert all(owner in running for _, owner in owners), (owners, running)
        idle = {link.name for link in host.links.values() if link.alias == f"banger:{instance}:-:pool"}
        assert idle == life.network.pool_taps()
        if not self.vms:
            assert not [link for link in host.links.values() if f"banger:{instance}" in link.alias]
        found = self.wait(self.findings(life))
        assert not found, found

    async def findings(self, life: Life) -> list[str]:
        return [f"{f.kind} {f.name}: {f.problem}" for f in await life.vms.audit() if f.fix]

    def owners(self, instance: str) -> Iterator[tuple[str, str]]:
        """Every object with our mark that is of a VM, with that VM."""
        host = self.host
        for link in host.links.values():
            mark = marks.parse_link_alias(link.alias)
            if mark is not None and mark[0] == instance and mark[1]:
                yield link.name, mark[1]
        for loop in host.loops.values():
            label = marks.parse_loop_label(loop.label)
            if label is not None:
                vm_id = next((vm.id for vm in self.vms if vm.id.startswith(label[1])), label[1])
                yield loop.device, vm_id
        for dm in host.dms.values():
            if dm.uuid.startswith(f"BANGER-{instance}-"):
                yield dm.name, dm.uuid.split("-")[2]
        for process in host.processes.values():
            if process.alive and process.role:
                yield str(process.pid), os.path.basename(process.cwd)

    def teardown(self) -> None:
        try:
            if self.life is not None:
                self.finale()
        finally:
            with contextlib.suppress(Dead):
                self.end_life()
            self.loop.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    def finale(self) -> None:
        """Whatever has happened: a reconcile converges, every VM starts, and delete leaves nothing."""
        self.host.crash()
        self.next_life(fault=None)
        del self.plans[:]
        self.next_life(fault=None)
        assert self.life is not None
        first = self.plans[0]
        assert [p for p in first.vms if p.verdict is Verdict.CLEAN] == []
        assert [f for f in first.findings if f.fix and not f.name.startswith(("tap-pool-", "br-fc"))] == []
        for vm in self.vms:
            self.operate_until_started(vm)
        for vm in self.vms:
            (outcome,) = self.during(
                "delete", operation("delete", vm.id), fault=None, targets=frozenset({vm.id})
            )
            assert outcome is None, repr(outcome)
        assert self.vms == []
        assert list(Path(self.life.services.paths.vms_dir).iterdir()) == []
        assert self.host.forwarding == "0"
        assert marks.nft_table(self.life.services.instance) not in [name for _, name in self.host.tables]

    def operate_until_started(self, vm: VMRecord) -> None:
        outcomes = [
            self.during("start", operation("start", vm.id), fault=None, targets=frozenset({vm.id}))[0]
            for _ in range(2 if self.foreign else 1)
        ]
        assert outcomes[-1] is None, outcomes
        assert next(one for one in self.vms if one.id == vm.id).state is VMState.RUNNING


async def ticks(count: int) -> None:
    """Turns of the event loop: the model's only time."""
    for _ in range(count):
        await asyncio.sleep(0)


def operation(what: str, vm_id: str) -> Callable[[Life], Awaitable[object]]:
    match what:
        case "start":
            return lambda life: life.vms.start(vm_id, no_progress)
        case "stop":
            return lambda life: life.vms.stop(vm_id, no_progress)
        case "kill":
            return lambda life: life.vms.kill(vm_id, KillVM(signal="TERM"), progress=no_progress)
        case "restart":
            return lambda life: life.vms.restart(vm_id, no_progress)
        case "delete":
            return lambda life: life.vms.delete(vm_id, no_progress)
        case _:
            change = SetVM(vcpu_count=2, work_disk_size_bytes=96 * MIB, nat=True)
            return lambda life: life.vms.set(vm_id, change, progress=no_progress)


Lifecycles.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= USUAL,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A home with an image, in memory where the host has such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="banger-model-", dir=place))
    try:
        asyncio.run(make_home(folder / "home"))
        yield folder / "home"
    finally:
        shutil.rmtree(folder)


@pytest.mark.limit(7200 if EXAMPLES > USUAL else 600)
def test_any_order_with_any_fault(template: Path) -> None:
    Lifecycles.template = template
    with quiet():
        Lifecycles.TestCase("runTest").runTest()
