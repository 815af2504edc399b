"""The planner: what is kept, what is cleaned, what is reported; nothing live or foreign touched."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from banger.helper.interface import Observed, ObservedDm, ObservedLink, ObservedLoop, ObservedProcess
from banger.model.records import ProcessIdentity, VMHandles, VMRecord, VMRuntime, VMSpec
from banger.model.states import VMState
from banger.network.bridges import Bridges
from banger.vm.planner import Finding, Fix, Verdict, VMView, World, plan

BOOT = "boot-1"
OURS = "00112233aabbccdd"
BRIDGES = Bridges(name="br-fc", address="172.16.0.1", prefix=24, guests=4)
OTHERS = "ffffffffffffffff"
MOMENT = datetime(2026, 11, 21, tzinfo=UTC)
VMS = "/h/state/vms"


def record_of(number: int, state: VMState, *, tap: str = "") -> VMRecord:
    vm_id = f"{number:064x}"
    return VMRecord(
        id=vm_id,
        name=f"vm{number}",
        image_id="i",
        state=state,
        created_at=MOMENT,
        updated_at=MOMENT,
        last_touched_at=MOMENT,
        spec=VMSpec(),
        runtime=VMRuntime(vm_dir=f"{VMS}/{vm_id}", tap_device=tap),
    )


def monitor_of(number: int, *, start: int = 5) -> ProcessIdentity:
    return ProcessIdentity(role="monitor", pid=1000 + number, start_time=start)


def seen(number: int, *, start: int = 5) -> ObservedProcess:
    return ObservedProcess(
        identity=monitor_of(number, start=start), cwd=f"{VMS}/{number:064x}", argv=("/usr/bin/firecracker",)
    )


def tap_of(name: str, number: int | None, *, instance: str = OURS) -> ObservedLink:
    vm_id = "" if number is None else f"{number:064x}"
    return ObservedLink(name=name, kind="tap", instance=instance, vm_id=vm_id, master="br-fc", up=True)


def world_of(*views: VMView, observed: Observed, pool: frozenset[str] = frozenset()) -> World:
    return World(
        instance=OURS, vms=views, observed=observed, bridges=BRIDGES, vms_dir=VMS,
        images_dir="/h/state/images", pool_taps=pool,
    )  # fmt: skip


BRIDGE = ObservedLink(name="br-fc", kind="bridge", instance=OURS, vm_id="")


def running(number: int) -> VMView:
    handles = VMHandles(boot_id=BOOT, processes=(monitor_of(number),), tap_device=f"tap-fc-{number}")
    return VMView(
        record=record_of(number, VMState.RUNNING, tap=f"tap-fc-{number}"),
        scratch=handles,
        live_processes=handles.processes,
    )


def test_tables_of_a_trace_that_a_crash_left_go() -> None:
    left = f"inet banger_{OURS}_why0123abcd"
    others = f"inet banger_{'f' * 16}_why0123abcd"  # observe leaves it out; and if it did not
    world = msgspec.structs.replace(
        world_of(running(1), observed=Observed(boot_id=BOOT, nft_tables=(left, others))), firewall=True
    )
    assert {f.name: f.fix for f in plan(world).findings} == {left: Fix.DELETE_NFT_TABLE, others: Fix.NONE}


def test_tables_and_forwarding_are_judged_by_what_this_daemon_made() -> None:
    ours = tuple(f"{family} banger_{OURS}" for family in ("inet", "bridge", "ip"))
    observed = Observed(boot_id=BOOT, nft_tables=(*ours, "ip banger_x"))
    world = msgspec.structs.replace(world_of(running(1), observed=observed), firewall=True)
    found = {(f.kind, f.name): f.fix for f in plan(world).findings}
    assert found == {
        ("nft", f"ip banger_{OURS}"): Fix.DELETE_NFT_TABLE,
        ("nft", "ip banger_x"): Fix.NONE,
    }
    world = msgspec.structs.replace(
        world, firewall_problem="are missing", forwarding_problem="is off", forwarding_changed=True
    )
    found = {(f.kind, f.name): f.fix for f in plan(world).findings if f.fix is Fix.RESTORE_FIREWALL}
    assert found == {
        ("nft", f"tables banger_{OURS}"): Fix.RESTORE_FIREWALL,
        ("sysctl", "net.ipv4.ip_forward"): Fix.RESTORE_FIREWALL,
    }
    # no VM is left: tables that nobody makes any more go, and the setting goes back
    world = msgspec.structs.replace(world_of(observed=observed), forwarding_changed=True)
    found = {(f.kind, f.name): f.fix for f in plan(world).findings}
    assert found.pop(("sysctl", "net.ipv4.ip_forward")) is Fix.RESTORE_FIREWALL
    assert found == {
        **dict.fromkeys([("nft", t) for t in ours], Fix.DELETE_NFT_TABLE),
        ("nft", "ip banger_x"): Fix.NONE,
    }


def test_a_running_vm_is_kept_and_all_of_its_is_explained() -> None:
    observed = Observed(
        boot_id=BOOT, links=(BRIDGE, tap_of("tap-fc-1", 1)), processes=(seen(1),),
        sockets=(f"{VMS}/{1:064x}/v.sock",), vm_dirs=(f"{1:064x}",),
    )  # fmt: skip
    decided = plan(world_of(running(1), observed=observed))
    assert decided.vms[0].verdict is Verdict.KEEP
    assert decided.findings == ()


def test_a_further_bridge_is_explained_and_each_tap_belongs_on_one() -> None:
    """Of 4 addresses a bridge, 172.16.0.6 is on the second."""
    further = msgspec.structs.replace(BRIDGE, name="br-fc-1")
    strange = msgspec.structs.replace(BRIDGE, name="br-of-before")
    view = running(1)
    runtime = msgspec.structs.replace(view.record.runtime, guest_ip="172.16.0.6")
    view = msgspec.structs.replace(view, record=msgspec.structs.replace(view.record, runtime=runtime))
    for master, problems in (("br-fc-1", {}), ("br-fc", {"tap-fc-1": "is not a port of br-fc-1"})):
        tap = msgspec.structs.replace(tap_of("tap-fc-1", 1), master=master)
        observed = Observed(
            boot_id=BOOT, links=(BRIDGE, further, strange, tap), processes=(seen(1),), vm_dirs=(f"{1:064x}",)
        )
        found = {f.name: f.problem for f in plan(world_of(view, observed=observed)).findings}
        assert found == {"br-of-before": "no VM needs it", **problems}
    alone = plan(world_of(observed=Observed(boot_id=BOOT, links=(BRIDGE, further)))).findings
    assert {(f.name, f.fix) for f in alone} == {(n, Fix.DELETE_BRIDGE) for n in ("br-fc", "br-fc-1")}


def test_a_lost_or_void_scratch_file_is_made_up_from_the_host() -> None:
    observed = Observed(
        boot_id=BOOT, links=(BRIDGE, tap_of("tap-pool-3", 1)), processes=(seen(1, start=5), seen(1, start=9))
    )
    for scratch in (VMHandles(), VMHandles(boot_id="another", processes=(monitor_of(7),), tap_device="x")):
        view = VMView(record=record_of(1, VMState.RUNNING), scratch=scratch)
        decided = plan(world_of(view, observed=observed)).vms[0]
        assert decided.verdict is Verdict.KEEP
        assert decided.handles.tap_device == "tap-pool-3"
        assert decided.handles.processes == (monitor_of(1, start=9),)


def test_the_found_process_replaces_the_process_only() -> None:
    scratch = VMHandles(boot_id=BOOT, processes=(monitor_of(1, start=3),), tap_device="tap-fc-1", dm_name="d")
    view = VMView(record=record_of(1, VMState.RUNNING), scratch=scratch)
    handles = plan(world_of(view, observed=Observed(boot_id=BOOT, processes=(seen(1),)))).vms[0].handles
    assert handles.processes == (monitor_of(1),)
    assert (handles.tap_device, handles.dm_name) == ("tap-fc-1", "d")


def test_dead_or_caught_in_the_middle_is_cleaned_and_says_why() -> None:
    for state in (VMState.RUNNING, VMState.STARTING, VMState.STOPPING):
        view = VMView(record=record_of(1, state, tap="tap-fc-1"))
        decided = plan(world_of(view, observed=Observed(boot_id=BOOT))).vms[0]
        assert decided.verdict is Verdict.CLEAN
        assert decided.why
        assert decided.handles.tap_device == "tap-fc-1"


def test_a_starting_vm_with_a_living_monitor_is_cleaned_with_it() -> None:
    view = VMView(record=record_of(1, VMState.STARTING))
    decided = plan(world_of(view, observed=Observed(boot_id=BOOT, processes=(seen(1),)))).vms[0]
    assert decided.verdict is Verdict.CLEAN
    assert decided.handles.processes == (monitor_of(1),)


def test_marked_objects_of_no_vm_are_removed_and_namesakes_reported() -> None:
    observed = Observed(
        boot_id=BOOT,
        links=(
            BRIDGE,
            tap_of("tap-pool-9", None),
            tap_of("tap-fc-aa", 77),
            tap_of("tap-fc-bb", None, instance=""),
            tap_of("tap-fc-cc", 5, instance=OTHERS),
        ),
        dms=(
            ObservedDm(name="fc-rootfs-1", uuid=f"BANGER-{OURS}-{77:064x}", device="/dev/dm-0"),
            ObservedDm(name="fc-rootfs-2", uuid=f"BANGER-{OTHERS}-{77:064x}", device="/dev/dm-1"),
            ObservedDm(name="fc-rootfs-3", uuid="x", device="/dev/dm-2"),
        ),
        loops=(ObservedLoop(device="/dev/loop3", backing_file=f"{VMS}/{77:064x}/cow.img"),),
        processes=(seen(77),),
        sockets=(f"{VMS}/{77:064x}/fc.sock",),
        vm_dirs=(f"{77:064x}",),
    )
    found = {f.name: f.fix for f in plan(world_of(observed=observed)).findings}
    assert found.pop("1077 (firecracker)") is Fix.KILL_PROCESS
    assert found == {
        "br-fc": Fix.DELETE_BRIDGE,
        "tap-pool-9": Fix.DELETE_TAP,
        "tap-fc-aa": Fix.DELETE_TAP,
        "tap-fc-bb": Fix.NONE,
        "fc-rootfs-1": Fix.REMOVE_DM,
        "fc-rootfs-3": Fix.NONE,
        "/dev/loop3": Fix.DETACH_LOOP,
        f"{VMS}/{77:064x}/fc.sock": Fix.REMOVE_FILE,
        f"{VMS}/{77:064x}": Fix.REMOVE_FOLDER,
    }


def test_loops_and_targets_of_a_vm_are_told_from_its_neighbours() -> None:
    """All VMs have a loop over the same image: the label says whose it is. One under way is not judged."""
    image = "/h/state/images/i/rootfs.ext4"

    def loop(number: int, vm: int | None) -> ObservedLoop:
        return ObservedLoop(
            device=f"/dev/loop{number}", backing_file=image, vm_id="" if vm is None else f"{vm:064x}"
        )

    kept = running(1)
    kept = msgspec.structs.replace(
        kept, scratch=msgspec.structs.replace(kept.scratch, base_loop="/dev/loop1", dm_name="fc-rootfs-1")
    )
    busy = VMView(record=record_of(2, VMState.STARTING), busy=True)
    observed = Observed(
        boot_id=BOOT,
        links=(BRIDGE, tap_of("tap-fc-1", 1)),
        processes=(seen(1),),
        loops=(loop(1, 1), loop(2, 2), loop(3, 3), loop(4, None), loop(5, 1)),
        dms=(
            ObservedDm(name="fc-rootfs-1", uuid=f"BANGER-{OURS}-{1:064x}", device="/dev/dm-0"),
            ObservedDm(name="fc-rootfs-2-base", uuid=f"BANGER-{OURS}-{2:064x}-base", device="/dev/dm-1"),
            ObservedDm(name="fc-rootfs-3-base", uuid=f"BANGER-{OURS}-{3:064x}-base", device="/dev/dm-2"),
        ),
        vm_dirs=(f"{1:064x}", f"{2:064x}"),
    )
    found = {f.name: (f.fix, f.vm_id) for f in plan(world_of(kept, busy, observed=observed)).findings}
    assert found == {
        "/dev/loop3": (Fix.DETACH_LOOP, f"{3:064x}"),
        "/dev/loop4": (Fix.NONE, ""),
        "/dev/loop5": (Fix.DETACH_LOOP, f"{1:064x}"),
        "fc-rootfs-3-base": (Fix.REMOVE_DM, f"{3:064x}"),
    }


STATES = st.sampled_from(list(VMState))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    views: list[VMView] = []
    processes: list[ObservedProcess] = []
    links: list[ObservedLink] = []
    for number in range(1, draw(st.integers(1, 5))):
        alive = draw(st.booleans())
        tap = draw(st.sampled_from(["", f"tap-fc-{number}", f"tap-pool-{number}"]))
        identity = monitor_of(number)
        recorded = draw(st.booleans())
        scratch = VMHandles(
            boot_id=draw(st.sampled_from([BOOT, "old", ""])),
            processes=(identity,) if recorded else (),
            tap_device=tap if draw(st.booleans()) else "",
        )
        record = record_of(number, draw(STATES), tap=tap if draw(st.booleans()) else "")
        live = scratch.processes if alive and scratch.boot_id == BOOT else ()
        if alive:
            processes.append(seen(number))
        if tap and draw(st.booleans()):
            links.append(tap_of(tap, number))
        busy = draw(st.integers(0, 9)) == 0
        views.append(VMView(record=record, scratch=scratch, live_processes=live, busy=busy))
    for number in draw(st.sets(st.integers(50, 53))):
        links.append(tap_of(f"tap-fc-{number}", number, instance=draw(st.sampled_from([OURS, OTHERS, ""]))))
    observed = Observed(boot_id=BOOT, links=(BRIDGE, *links), processes=tuple(processes))
    return world_of(*views, observed=observed)


@given(worlds())
def test_nothing_live_and_nothing_foreign_is_ever_touched(world: World) -> None:
    decided = plan(world)
    kept = {p.vm_id: p.handles for p in decided.vms if p.verdict is Verdict.KEEP}
    busy = {view.record.id for view in world.vms if view.busy}
    foreign = {link.name for link in world.observed.links if link.instance != OURS}
    for finding in decided.findings:
        if finding.fix:
            assert finding.vm_id not in busy
            assert finding.name not in foreign
            assert finding.process not in [p for h in kept.values() for p in h.processes]
            assert finding.name not in [h.tap_device for h in kept.values()]


@given(worlds())
def test_once_applied_there_is_nothing_left_to_do(world: World) -> None:
    """Convergence: apply the plan to the model host, and plan again."""
    after = apply(world)
    assert [f for f in plan(after).findings if f.fix] == []
    assert all(p.verdict is not Verdict.CLEAN for p in plan(after).vms)


def apply(world: World) -> World:
    """A model host: CLEAN tears a VM down, every finding with a fix is removed."""
    decided = plan(world)
    gone_links: set[str] = set()
    gone_processes: set[ProcessIdentity] = set()
    views: list[VMView] = [view for view in world.vms if view.busy]
    plans = {p.vm_id: p for p in decided.vms}
    for view in world.vms:
        if view.busy:
            continue
        verdict = plans[view.record.id]
        if verdict.verdict is Verdict.CLEAN:
            gone_links.add(verdict.handles.tap_device)
            gone_processes.update(verdict.handles.processes)
            runtime = msgspec.structs.replace(view.record.runtime, tap_device="")
            record = msgspec.structs.replace(view.record, state=VMState.STOPPED, runtime=runtime)
            views.append(VMView(record=record))
        elif verdict.verdict is Verdict.REST:
            views.append(view)  # reconcile does nothing: its scratch file stays
        else:
            processes = verdict.handles.processes
            views.append(VMView(record=view.record, scratch=verdict.handles, live_processes=processes))
    findings: list[Finding] = [f for f in decided.findings if f.fix]
    gone_links |= {f.name for f in findings if f.fix in (Fix.DELETE_TAP, Fix.DELETE_BRIDGE)}
    gone_processes |= {f.process for f in findings if f.process is not None}
    observed = msgspec.structs.replace(
        world.observed,
        links=tuple(link for link in world.observed.links if link.name not in gone_links),
        processes=tuple(p for p in world.observed.processes if p.identity not in gone_processes),
    )
    return msgspec.structs.replace(world, vms=tuple(views), observed=observed)
