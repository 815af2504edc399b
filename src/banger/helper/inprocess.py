"""The privileged operations, executed in this process: for daemons that are root (CI, containers).

Each argument is validated and each object's mark checked before it is acted on: what is not this
instance's is never changed. Operations are idempotent. Nothing is kept here but a netlink socket;
what was made stays after a crash, marked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal as signals
import stat
from collections.abc import Sequence

from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode
from banger.helper import marks, ruleset, validate
from banger.helper.errors import NotOurs, Refused
from banger.helper.interface import (
    FirewallRules,
    Observed,
    ObservedDm,
    ObservedLink,
    ObservedLoop,
    ObservedProcess,
)
from banger.helper.tracing import Traces
from banger.model.netwhy import Flow, TraceEvent
from banger.model.records import ProcessIdentity
from banger.system import devicemapper, links, loops, mounts, nft, process, resolved, sysctl

BRIDGE_NAMES = ("br-fc",)
TAP_NAMES = ("tap-fc-", "tap-pool-")
DM_NAMES = "fc-rootfs-"
ROLES = {"vhost-device-vsock": "vsock"}
CARRIER_PROGRAM = "/guest/carrier.py"
"""Of published ports: Python's argument, as the daemon launches it in ports_dir."""


class InProcessHelper:
    """See helper.interface.Helper."""

    def __init__(
        self, instance: str, paths: Paths, *, programs: frozenset[str] = validate.MONITOR_PROGRAMS
    ) -> None:
        """programs: basenames that may be launched."""
        self._instance = instance
        self._paths = paths
        self._programs = programs
        self._links = links.Links()
        self._traces = Traces(instance)
        self._canonical = ("", "")
        """The ruleset that drift was last looked for in, and how the kernel shows it."""

    async def close(self) -> None:
        await self._traces.close()
        await self._links.close()

    # links

    async def ensure_bridge(
        self,
        name: str,
        *,
        address: str,
        prefix: int,
        routes: tuple[str, ...] = (),
        proxy_arp: bool = False,
    ) -> None:
        validate.bridge_name(name)
        wanted = validate.address(address, prefix)
        networks = validate.routes(routes)
        link = await self._links.get(name)
        if link is None:
            await self._refuse_overlap(wanted)
            link = await self._links.create_bridge(name, mac=marks.bridge_mac(self._instance))
            await self._links.set_alias(link, marks.link_alias(self._instance, "", "bridge"))
            await self._links.disable_ipv6_address(link)
        elif link.kind == "bridge" and not link.alias and link.mac == marks.bridge_mac(self._instance):
            # made, but not yet marked, when an earlier daemon died
            await self._links.set_alias(link, marks.link_alias(self._instance, "", "bridge"))
            await self._links.disable_ipv6_address(link)
        else:
            self._require_ours(link, "bridge")
        await self._links.learn_no_linklocal(link)
        for index, there in await self._links.addresses():
            if index == link.index and there != wanted:
                await self._links.remove_address(link, there)
        await self._links.add_address(link, wanted)
        await self._links.set_proxy_arp(link, proxy_arp)
        await self._links.set_up(link)
        for network in networks:
            await self._links.add_route(link, network)

    async def delete_bridge(self, name: str) -> None:
        link = await self._links.get(validate.bridge_name(name))
        if link is not None and self._is_ours(link):
            await self._links.delete(link)

    async def create_tap(self, name: str, *, bridge: str, vm_id: str) -> None:
        validate.tap_name(name)
        alias = self._tap_alias(vm_id)
        master = await self._links.get(validate.bridge_name(bridge))
        if master is None:
            raise BangerError(ErrorCode.HOST_UNSUITABLE, f"the bridge {bridge} is gone")
        link = await self._links.get(name)
        if link is None:
            group = marks.link_group(self._instance)
            await self._links.create_tap(name, master=master.index, alias=alias, group=group)
            return
        self._require_ours(link, "tap")
        await self._links.set_alias(link, alias)
        await self._links.set_master(link, master.index)
        await self._links.set_up(link)

    async def mark_tap(self, name: str, *, vm_id: str) -> None:
        link = await self._links.get(validate.tap_name(name))
        if link is None:
            raise BangerError(ErrorCode.HOST_UNSUITABLE, f"tap {name} is gone")
        self._require_ours(link, "tap")
        await self._links.set_alias(link, self._tap_alias(vm_id))

    async def delete_tap(self, name: str) -> None:
        link = await self._links.get(validate.tap_name(name))
        if link is not None and self._is_ours(link):
            await self._links.delete(link)

    async def find_link(self, name: str) -> ObservedLink | None:
        link = await self._links.get(validate.tap_name(name))
        if link is None:
            return None
        return self._observed_link(link, {link.master: self._links.name_of(link.master)})

    async def list_links(self) -> tuple[ObservedLink, ...]:
        found = await self._links.all()
        names = {link.index: link.name for link in found}
        return tuple(seen for link in found if (seen := self._observed_link(link, names)) is not None)

    def _tap_alias(self, vm_id: str) -> str:
        validate.vm_id(vm_id, optional=True)
        return marks.link_alias(self._instance, vm_id, "tap" if vm_id else "pool")

    # the host's resolver

    async def names_routable(self) -> bool:
        return await resolved.runs()

    async def route_names(self, link: str, *, server: str, domain: str) -> None:
        validate.name_server(server)
        validate.domain(domain)
        found = await self._links.get(validate.bridge_name(link))
        if found is None:
            raise BangerError(ErrorCode.HOST_UNSUITABLE, f"the bridge {link} is gone")
        self._require_ours(found, "bridge")
        await resolved.set_domain(link, server=server, domain=domain)

    async def names_routed(self, link: str, *, server: str, domain: str) -> bool:
        validate.bridge_name(link)
        return await resolved.has_domain(
            link, server=validate.name_server(server), domain=validate.domain(domain)
        )

    async def unroute_names(self, link: str) -> None:
        found = await self._links.get(validate.bridge_name(link))
        if found is not None and self._is_ours(found):
            await resolved.revert(link)

    # the firewall

    async def apply_firewall(self, rules: FirewallRules) -> None:
        await nft.apply(ruleset.ruleset(self._instance, validate.firewall(rules)))

    async def firewall_drift(self, rules: FirewallRules) -> str:
        wanted = ruleset.ruleset(self._instance, validate.firewall(rules))
        there = await nft.listing(ruleset.tables(self._instance))
        if there is None:
            return "are missing"
        if self._canonical[0] != wanted:
            self._canonical = (wanted, await nft.canonical(wanted))
        return "" if there == self._canonical[1] else "have been changed by another program"

    async def remove_firewall(self) -> None:
        for table in await nft.tables():
            if table[1] == marks.nft_table(self._instance):
                await nft.apply(ruleset.removal(table))

    async def remove_nft_table(self, table: str) -> None:
        family, _, name = table.partition(" ")
        if name != marks.nft_table(self._instance) and not marks.is_trace_table(name, self._instance):
            raise NotOurs(f"the nft table {table!a} is not this banger's")
        if (family, name) in await nft.tables():
            await nft.apply(ruleset.removal((family, name)))

    async def begin_trace(self, flow: Flow) -> str:
        return await self._traces.begin(validate.flow(flow))

    async def end_trace(self, token: str) -> tuple[TraceEvent, ...]:
        return await self._traces.end(token)

    async def forwarding(self) -> bool:
        return sysctl.read(sysctl.IP_FORWARD) != "0"

    async def set_forwarding(self, on: bool) -> None:
        sysctl.write(sysctl.IP_FORWARD, "1" if on else "0")

    async def others_need_forwarding(self) -> bool:
        ours = marks.nft_table(self._instance)
        return any(
            chain == ruleset.FORWARDING_MARK and table != ours and marks.is_nft_table(table)
            for _, table, chain in await nft.chains()
        )

    # loops, dm

    async def attach_loop(self, backing_file: str, *, read_only: bool, vm_id: str) -> str:
        validate.below(backing_file, self._paths.vms_dir, self._paths.images_dir)
        label = marks.loop_label(self._instance, validate.vm_id(vm_id))
        return await asyncio.to_thread(loops.attach, backing_file, read_only=read_only, label=label)

    async def detach_loop(self, device: str, *, backing_file: str) -> None:
        validate.loop_device(device)
        validate.below(backing_file, self._paths.vms_dir, self._paths.images_dir)
        await asyncio.to_thread(loops.detach, device, backing_file=backing_file)

    async def create_snapshot_dm(
        self, name: str, *, uuid: str, base_loop: str, cow_loop: str, size_bytes: int
    ) -> str:
        validate.dm_name(name)
        self._require_our_uuid(uuid)
        for loop in (base_loop, cow_loop):
            await asyncio.to_thread(self._require_our_loop, validate.loop_device(loop))
        base_bytes = await asyncio.to_thread(devicemapper.device_size, base_loop)
        if size_bytes < base_bytes or size_bytes % devicemapper.SECTOR:
            raise Refused(f"a root disk of {size_bytes} bytes is smaller than its image, or no whole sectors")
        base = await devicemapper.create(
            name + marks.BASE,
            uuid=uuid + marks.BASE,
            table=devicemapper.base_table(base_loop, base_bytes=base_bytes, size_bytes=size_bytes),
            read_only=True,
        )
        table = devicemapper.snapshot_table(base.device, cow_loop, size_bytes=size_bytes)
        return (await devicemapper.create(name, uuid=uuid, table=table)).device

    async def remove_dm(self, name: str, *, uuid: str) -> None:
        validate.dm_name(name)
        self._require_our_uuid(uuid)
        await devicemapper.remove(uuid)
        if not uuid.endswith(marks.BASE):
            await devicemapper.remove(uuid + marks.BASE)

    # processes

    async def launch(
        self, argv: Sequence[str], *, role: str, vm_id: str, vm_dir: str, stdout: str
    ) -> ProcessIdentity:
        validate.program(argv[0], allowed=self._programs)
        validate.vm_id(vm_id)
        if validate.below(vm_dir, self._paths.vms_dir) != self._paths.vm_dir(vm_id):
            raise Refused(f"{vm_dir!a} is not the folder of VM {vm_id[:12]}")
        return process.launch(argv, role=validate.role(role), cwd=vm_dir, stdout=validate.file_name(stdout))

    async def signal(self, identity: ProcessIdentity, signum: int) -> bool:
        if signum not in set(signals.Signals):
            raise Refused(f"{signum} is no signal")
        if not self._runs_for_us(identity):
            return False
        return process.send_signal(identity, signum)

    async def wait_gone(self, identity: ProcessIdentity, *, timeout_s: float) -> bool:
        return await process.wait_gone(identity, timeout_s=timeout_s)

    # what there is

    async def observe(self, *, vms_dir: str) -> Observed:
        observed_links = await self.list_links()
        tables = await nft.tables()
        found_loops, processes, points, sockets, folders = await asyncio.to_thread(self._look, vms_dir)
        dms = await asyncio.to_thread(_observed_dms)
        return Observed(
            boot_id=process.boot_id(),
            links=observed_links,
            loops=found_loops,
            dms=dms,
            processes=processes,
            mounts=points,
            nft_tables=tuple(
                f"{family} {name}"
                for family, name in tables
                if self._is_our_table(name) or marks.is_nft_namesake(name)
            ),
            sockets=sockets,
            vm_dirs=folders,
        )

    def _look(
        self, vms_dir: str
    ) -> tuple[
        tuple[ObservedLoop, ...],
        tuple[ObservedProcess, ...],
        tuple[str, ...],
        tuple[str, ...],
        tuple[str, ...],
    ]:
        """What is read from /sys, /proc and the state folder. Blocking."""
        ours = (f"{vms_dir}/", f"{self._paths.images_dir}/")
        found_loops = tuple(
            ObservedLoop(
                device=loop.device,
                backing_file=loop.backing_file,
                deleted=loop.deleted,
                vm_id=_owner(loop.label, vms_dir),
            )
            for loop in loops.list_loops()
            if loop.backing_file.startswith(ours)
        )
        processes = tuple(
            ObservedProcess(
                identity=ProcessIdentity(role=role, pid=found.pid, start_time=found.start_time),
                cwd=found.cwd,
                argv=found.argv,
            )
            for found in process.search(vms_dir, self._paths.ports_dir)
            if (role := self._role_of(found))
        )
        points = tuple(point for point in mounts.mount_points() if point.startswith(f"{vms_dir}/"))
        sockets: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(vms_dir) as entries:
                folders = sorted(entry.name for entry in entries)
        except FileNotFoundError:
            pass
        for name in folders:
            try:
                with os.scandir(f"{vms_dir}/{name}") as entries:
                    sockets += [e.path for e in entries if _is_socket(e)]
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found_loops, processes, points, tuple(sorted(sockets)), tuple(folders)

    def _role_of(self, found: process.FoundProcess) -> str:
        """ "" for what is no process of ours: a shell or an editor in a VM's folder is its owner's."""
        if found.cwd == self._paths.ports_dir:
            carries = any(word.endswith(CARRIER_PROGRAM) for word in found.argv)
            return found.launch_role or ("ports" if carries else "")
        if not f"{found.cwd}/".startswith(f"{self._paths.vms_dir}/"):
            return ""
        if found.launch_role:
            return found.launch_role
        program = os.path.basename(found.argv[0]) if found.argv else ""
        if program not in self._programs:
            return ""
        return ROLES.get(program, "monitor")

    def _observed_link(self, link: links.Link, names: dict[int, str]) -> ObservedLink | None:
        mark = marks.parse_link_alias(link.alias)
        namesake = link.name.startswith(TAP_NAMES) or link.name in BRIDGE_NAMES
        if mark is None and not namesake:
            return None
        instance, vm_id, _role = mark or ("", "", "")
        kind = "bridge" if link.kind == "bridge" else "tap"
        return ObservedLink(
            name=link.name,
            kind=kind,
            instance=instance,
            vm_id=vm_id,
            master=names.get(link.master, ""),
            up=link.up,
            carrier=link.carrier,
        )

    def _is_our_table(self, name: str) -> bool:
        """Those of a trace that runs are no finding: they are about to go."""
        left_over = marks.is_trace_table(name, self._instance) and name not in self._traces.tables()
        return name == marks.nft_table(self._instance) or left_over

    def _is_ours(self, link: links.Link) -> bool:
        mark = marks.parse_link_alias(link.alias)
        return mark is not None and mark[0] == self._instance

    def _require_ours(self, link: links.Link, what: str) -> None:
        if self._is_ours(link):
            return
        hint = "set another bridge_name in config.toml" if what == "bridge" else "banger host audit"
        raise NotOurs(f"the {what} {link.name} is there already, and is not this banger's", hint=hint)

    def _require_our_uuid(self, uuid: str) -> None:
        mark = marks.dm_uuid(self._instance, "")
        if not uuid.startswith(mark):
            raise Refused(f"{uuid[:120]!a} is not the mark of this instance")
        validate.vm_id(uuid.removeprefix(mark).removesuffix(marks.BASE))

    def _require_our_loop(self, device: str) -> None:
        loop = next((loop for loop in loops.list_loops() if loop.device == device), None)
        mark = marks.parse_loop_label(loop.label) if loop is not None else None
        if mark is None or mark[0] != self._instance:
            raise NotOurs(f"{device} is not a loop of this instance")

    async def _refuse_overlap(self, wanted: ipaddress.IPv4Interface) -> None:
        """Two links over one network would split its guests' packets between them; our bridges share it."""
        found = await self._links.all()
        names = {link.index: link.name for link in found}
        ours = {link.index for link in found if link.kind == "bridge" and self._is_ours(link)}
        for index, there in await self._links.addresses():
            if index not in ours and wanted.network.overlaps(there.network):
                raise NotOurs(
                    f"the network {wanted.network} is in use already: {names.get(index, '?')} has {there}",
                    hint="set another bridge_ip in config.toml",
                )
        for index, network in await self._links.routes():
            if index not in ours and wanted.network.overlaps(network):
                raise NotOurs(
                    f"the network {wanted.network} is in use already: "
                    f"there is a route to {network} through {names.get(index, '?')}",
                    hint="set another bridge_ip in config.toml",
                )

    def _runs_for_us(self, identity: ProcessIdentity) -> bool:
        """Its working directory is a VM's folder of this instance, or the carrier's; or it has ended."""
        try:
            cwd = os.readlink(f"/proc/{identity.pid}/cwd")
        except OSError:
            return process.is_same(identity) is False
        return cwd.startswith(f"{self._paths.vms_dir}/") or cwd == self._paths.ports_dir


def _observed_dms() -> tuple[ObservedDm, ...]:
    """Marked targets and namesakes. A snapshot's base is a part of it, and is only seen without it."""
    found = [
        target
        for target in devicemapper.list_targets()
        if target.uuid.startswith("BANGER-") or target.name.startswith(DM_NAMES)
    ]
    uuids = {target.uuid for target in found}
    return tuple(
        ObservedDm(name=target.name, uuid=target.uuid, device=target.device)
        for target in found
        if not (target.uuid.endswith(marks.BASE) and target.uuid.removesuffix(marks.BASE) in uuids)
    )


def _owner(label: str, vms_dir: str) -> str:
    """The id of the VM that a loop's label names: whole, where its folder is there."""
    mark = marks.parse_loop_label(label)
    if mark is None:
        return ""
    try:
        return next((name for name in os.listdir(vms_dir) if name.startswith(mark[1])), mark[1])
    except FileNotFoundError:
        return mark[1]


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
