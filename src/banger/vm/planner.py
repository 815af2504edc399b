"""The planner: one pure function from (store, handles, what the host shows) to what should be done.

Startup reconcile, `host audit`, the leak check and the crash tests all use `plan`. It touches nothing,
asks nothing and knows no time: everything it judges is in the World it is given.
A finding with `fix` can be put right by vm/executor.py; one without is reported and left alone, because
it carries banger's names but not this instance's mark.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from banger.helper.interface import Observed, ObservedLink, ObservedProcess
from banger.helper.marks import BASE, is_trace_table, nft_table
from banger.helper.ruleset import tables
from banger.model.ids import is_vm_id
from banger.model.records import ProcessIdentity, VMHandles, VMRecord, VMRuntime
from banger.model.states import CLAIMS_LIFE, VMState
from banger.network.bridges import Bridges
from banger.network.firewall import FORWARDING_NAME
from banger.vmm.protocol import MONITOR_ROLE

CARRIER_ROLE = "ports"
TAP_NAMES = ("tap-fc-", "tap-pool-")


class Fix(StrEnum):
    DELETE_TAP = "delete_tap"
    DELETE_BRIDGE = "delete_bridge"
    DETACH_LOOP = "detach_loop"
    REMOVE_DM = "remove_dm"
    KILL_PROCESS = "kill_process"
    DELETE_NFT_TABLE = "delete_nft_table"
    RESTORE_FIREWALL = "restore_firewall"
    REMOVE_FILE = "remove_file"
    REMOVE_FOLDER = "remove_folder"
    NONE = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something on the host that should not be, or should be otherwise."""

    kind: str  # tap bridge loop dm process nft sysctl socket folder file mount port
    name: str
    problem: str
    vm_id: str = ""
    fix: Fix = Fix.NONE
    extra: str = ""  # what the fix needs besides: a loop's backing file, a dm's uuid
    process: ProcessIdentity | None = None


class VMView(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as store and scratch know it. busy: an operation holds its lock, so it is not judged."""

    record: VMRecord
    scratch: VMHandles = VMHandles()
    live_processes: tuple[ProcessIdentity, ...] = ()  # of the scratch's, those verified to run now
    busy: bool = False


class World(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    vms: tuple[VMView, ...]
    observed: Observed
    bridges: Bridges
    vms_dir: str
    images_dir: str
    pool_taps: frozenset[str] = frozenset()
    carriers: frozenset[ProcessIdentity] = frozenset()
    """Of published ports: those that this daemon has launched; one of an earlier daemon is a leftover."""
    firewall: bool = False  # this instance's nft tables should be there
    firewall_problem: str = ""  # what is wrong with them
    forwarding_problem: str = ""  # what is wrong with net.ipv4.ip_forward, for the VMs that run
    forwarding_changed: bool = False  # it was switched on for VMs, and has not been put back


class Verdict(StrEnum):
    KEEP = "keep"  # running and alive: adopt it
    CLEAN = "clean"  # dead, or caught in a start or stop: tear down with the recovered handles
    REST = "rest"  # nothing claims life and nothing is there


class VMPlan(msgspec.Struct, frozen=True, kw_only=True):
    vm_id: str
    verdict: Verdict
    handles: VMHandles
    why: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    vms: tuple[VMPlan, ...]
    findings: tuple[Finding, ...]


def plan(world: World) -> Plan:
    vms = tuple(_judge(world, view) for view in world.vms if not view.busy)
    return Plan(vms=vms, findings=tuple(_findings(world, {p.vm_id: p for p in vms})))


def mirror_handles(runtime: VMRuntime, boot_id: str) -> VMHandles:
    """The teardown mirror as handles; it knows no processes."""
    return VMHandles(
        boot_id=boot_id,
        tap_device=runtime.tap_device,
        base_loop=runtime.base_loop,
        cow_loop=runtime.cow_loop,
        dm_name=runtime.dm_name,
        dm_dev=runtime.dm_dev,
    )


def recover(world: World, view: VMView) -> VMHandles:
    """A VM's handles: a live process wins over scratch, scratch over mirror, and what the host shows
    fills what is missing. A scratch file of another boot is void."""
    record, observed = view.record, world.observed
    valid = view.scratch.boot_id == observed.boot_id and not view.scratch.is_empty()
    base = view.scratch if valid else mirror_handles(record.runtime, observed.boot_id)
    processes = view.live_processes if valid else ()
    if not any(p.role == MONITOR_ROLE for p in processes):
        found = _processes_of(world, record.id)
        processes = (*found, *(p for p in processes if p.role not in {f.role for f in found}))
    tap = base.tap_device or next(
        (link.name for link in observed.links if _is_our_tap(world, link) and link.vm_id == record.id), ""
    )
    dm = next((d for d in observed.dms if d.uuid == f"BANGER-{world.instance}-{record.id}"), None)
    folder = f"{world.vms_dir}/{record.id}/"
    mine = [
        loop for loop in observed.loops if loop.vm_id == record.id or loop.backing_file.startswith(folder)
    ]
    cow = next((loop.device for loop in mine if loop.backing_file.startswith(folder)), "")
    image = next((loop.device for loop in mine if not loop.backing_file.startswith(folder)), "")
    return VMHandles(
        boot_id=observed.boot_id,
        processes=processes,
        tap_device=tap,
        base_loop=base.base_loop or image,
        cow_loop=base.cow_loop or cow,
        dm_name=base.dm_name or (dm.name if dm else ""),
        dm_dev=base.dm_dev or (dm.device if dm else ""),
    )


def _judge(world: World, view: VMView) -> VMPlan:
    record = view.record
    handles = recover(world, view)
    alive = any(p.role == MONITOR_ROLE for p in handles.processes)
    if record.state is VMState.RUNNING and alive:
        return VMPlan(vm_id=record.id, verdict=Verdict.KEEP, handles=handles)
    if record.state is VMState.RUNNING:
        return VMPlan(
            vm_id=record.id,
            verdict=Verdict.CLEAN,
            handles=handles,
            why="the machine was not running any more when the daemon started",
        )
    if record.state in CLAIMS_LIFE:
        why = f"the daemon ended while the VM was {record.state.value}"
        return VMPlan(vm_id=record.id, verdict=Verdict.CLEAN, handles=handles, why=why)
    if not handles.is_empty():
        return VMPlan(vm_id=record.id, verdict=Verdict.CLEAN, handles=handles)
    return VMPlan(vm_id=record.id, verdict=Verdict.REST, handles=handles)


def _processes_of(world: World, vm_id: str) -> tuple[ProcessIdentity, ...]:
    """Processes whose working directory is this VM's folder, the newest of each role."""
    folder = f"{world.vms_dir}/{vm_id}"
    newest: dict[str, ProcessIdentity] = {}
    for process in world.observed.processes:
        if process.cwd != folder:
            continue
        identity = process.identity
        known = newest.get(identity.role)
        if known is None or identity.start_time > known.start_time:
            newest[identity.role] = identity
    return tuple(sorted(newest.values(), key=lambda p: p.role != MONITOR_ROLE))


def _is_our_tap(world: World, link: ObservedLink) -> bool:
    return link.kind == "tap" and link.instance == world.instance


def _findings(world: World, plans: dict[str, VMPlan]) -> list[Finding]:
    """Objects that no kept VM explains. VMs that are busy explain everything that names them."""
    known = {view.record.id for view in world.vms}
    busy = {view.record.id for view in world.vms if view.busy}
    kept = {p.vm_id: p.handles for p in plans.values() if p.verdict is Verdict.KEEP}
    found: list[Finding] = []
    found += _link_findings(world, kept=kept, busy=busy, known=known)
    found += _disk_findings(world, kept=kept, busy=busy)
    found += [f for p in world.observed.processes if (f := _process_finding(world, p, kept=kept, busy=busy))]
    for path in world.observed.sockets:
        owner = _owner(world, path)
        if owner not in kept and owner not in busy:
            found.append(_of_file(world, path, "socket", known=known))
    for name in world.observed.vm_dirs:
        path = f"{world.vms_dir}/{name}"
        if name in known:
            continue
        if is_vm_id(name):
            problem = "the folder of a VM that the store does not know"
            found.append(Finding(kind="folder", name=path, problem=problem, fix=Fix.REMOVE_FOLDER))
        else:
            found.append(Finding(kind="file", name=path, problem="lies among the VMs' folders, and is none"))
    found += _firewall_findings(world, known=known)
    for mount in world.observed.mounts:
        found.append(Finding(kind="mount", name=mount, problem="banger mounts nothing on the host"))
    return found


def _link_findings(
    world: World, *, kept: dict[str, VMHandles], busy: set[str], known: set[str]
) -> list[Finding]:
    found: list[Finding] = []
    addresses = {view.record.id: view.record.runtime.guest_ip for view in world.vms}
    for link in world.observed.links:
        if link.instance and link.instance != world.instance:
            continue
        if not link.instance:
            if link.name == world.bridges.name or link.name.startswith(TAP_NAMES):
                found.append(
                    Finding(kind=link.kind, name=link.name, problem="has banger's name, but not its mark")
                )
            continue
        if link.kind == "bridge":
            if not world.bridges.own(link.name) or not (known or world.pool_taps):
                found.append(
                    Finding(kind="bridge", name=link.name, problem="no VM needs it", fix=Fix.DELETE_BRIDGE)
                )
            continue
        if link.name in world.pool_taps or link.vm_id in busy:
            continue
        if link.vm_id in kept and kept[link.vm_id].tap_device == link.name:
            bridge = world.bridges.of(addresses[link.vm_id])
            if link.master != bridge:
                found.append(
                    Finding(
                        kind="tap",
                        name=link.name,
                        problem=f"is not a port of {bridge}",
                        vm_id=link.vm_id,
                    )
                )
            continue
        if not link.name.startswith(TAP_NAMES):  # the helper removes no link that banger cannot have made
            problem = "has banger's mark, but not its name"
            found.append(Finding(kind="tap", name=link.name, problem=problem, vm_id=link.vm_id))
            continue
        problem = "belongs to no VM" if link.vm_id not in known else "its VM does not use it"
        found.append(
            Finding(kind="tap", name=link.name, problem=problem, vm_id=link.vm_id, fix=Fix.DELETE_TAP)
        )
    return found


def _firewall_findings(world: World, *, known: set[str]) -> list[Finding]:
    found: list[Finding] = []
    wanted = {" ".join(table) for table in tables(world.instance)} if world.firewall else set()
    for table in world.observed.nft_tables:
        name = table.partition(" ")[2]
        if is_trace_table(name, world.instance):
            problem = "a `net why` left it behind"
            found.append(Finding(kind="nft", name=table, problem=problem, fix=Fix.DELETE_NFT_TABLE))
        elif name != nft_table(world.instance):
            found.append(Finding(kind="nft", name=table, problem="has banger's name, but not its mark"))
        elif table not in wanted:
            found.append(Finding(kind="nft", name=table, problem="no VM needs it", fix=Fix.DELETE_NFT_TABLE))
    for kind, name, problem in (
        ("nft", f"tables {nft_table(world.instance)}", world.firewall_problem),
        ("sysctl", FORWARDING_NAME, world.forwarding_problem),
    ):
        if problem:
            found.append(Finding(kind=kind, name=name, problem=problem, fix=Fix.RESTORE_FIREWALL))
    if world.forwarding_changed and not known:
        problem = "was switched on for VMs, and none is left"
        found.append(Finding(kind="sysctl", name=FORWARDING_NAME, problem=problem, fix=Fix.RESTORE_FIREWALL))
    return found


def _disk_findings(world: World, *, kept: dict[str, VMHandles], busy: set[str]) -> list[Finding]:
    found: list[Finding] = []
    used_loops = {loop for h in kept.values() for loop in (h.base_loop, h.cow_loop) if loop}
    mark = f"BANGER-{world.instance}-"
    for dm in world.observed.dms:
        if not dm.uuid.startswith("BANGER-"):
            found.append(Finding(kind="dm", name=dm.name, problem="has banger's name, but not its mark"))
            continue
        if not dm.uuid.startswith(mark):
            continue
        # a base whose snapshot is gone is shown by itself
        vm_id = dm.uuid.removeprefix(mark).removesuffix(BASE)
        if vm_id in busy or (vm_id in kept and kept[vm_id].dm_name == dm.name):
            continue
        found.append(
            Finding(
                kind="dm",
                name=dm.name,
                problem="belongs to no running VM",
                vm_id=vm_id,
                fix=Fix.REMOVE_DM,
                extra=dm.uuid,
            )
        )
    for loop in world.observed.loops:
        owner = loop.vm_id or _owner(world, loop.backing_file)
        if loop.device in used_loops or owner in busy:
            continue
        problem = f"over {loop.backing_file}, used by no running VM"
        if owner:
            found.append(
                Finding(
                    kind="loop",
                    name=loop.device,
                    problem=problem,
                    vm_id=owner,
                    fix=Fix.DETACH_LOOP,
                    extra=loop.backing_file,
                )
            )
        else:  # somebody's own look into an image
            found.append(Finding(kind="loop", name=loop.device, problem=f"{problem}, without banger's label"))
    return found


def _process_finding(
    world: World, process: ObservedProcess, *, kept: dict[str, VMHandles], busy: set[str]
) -> Finding | None:
    owner = _owner(world, process.cwd + "/")
    if owner in busy or process.identity in world.carriers:
        return None
    if owner in kept and process.identity in kept[owner].processes:
        return None
    name = process.argv[0].rsplit("/", 1)[-1] if process.argv else "?"
    carries = process.identity.role == CARRIER_ROLE
    return Finding(
        kind="process",
        name=f"{process.identity.pid} ({name})",
        problem="carries ports for no daemon" if carries else "runs for no VM that should run",
        vm_id=owner,
        fix=Fix.KILL_PROCESS,
        process=process.identity,
    )


def _of_file(world: World, path: str, kind: str, *, known: set[str]) -> Finding:
    owner = _owner(world, path)
    problem = "its VM does not run" if owner in known else "belongs to no VM"
    return Finding(kind=kind, name=path, problem=problem, vm_id=owner, fix=Fix.REMOVE_FILE)


def _owner(world: World, path: str) -> str:
    """The VM id in a path below vms_dir, else ""."""
    prefix = f"{world.vms_dir}/"
    return path.removeprefix(prefix).split("/", 1)[0] if path.startswith(prefix) else ""
