"""A host in memory: links, loops, dm targets, processes and tables, with the habits of the real ones.

It stands where `system/` meets the kernel, so that all above it is the product's own code: the helper with
its checks, the disk strategies, the network, the lifecycle, the planner. Every call of it can fail, be
cancelled, see a monitor die, or be the daemon's last. It is single-threaded, and the same from run to run.
Files (the store, scratch files, disks, pid files) are real, in the folder that it is given.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import ipaddress
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.helper import marks, ruleset
from banger.model.records import ProcessIdentity
from banger.system.devicemapper import SnapshotStatus, Target
from banger.system.errors import KernelError
from banger.system.links import Link
from banger.system.loops import Loop
from banger.system.process import FoundProcess

T = TypeVar("T")
FIRST_PID = 10_000_000
"""No real process has it: the kernel's largest is 4,194,304."""


LOOKS = (
    *("link:list", "link:get", "loops:list", "dm:list", "dm:status"),
    *("process:search", "nft:list", "sysctl:read"),
)
"""Calls that change nothing."""
CALLS = {"open": 50, "create": 75, "reserve": 4, "start": 70, "restart": 120, "set": 4, "end": 45}
"""About how many there are in an operation."""
CALLS |= {"stop": 55, "kill": 55, "delete": 60}


class Dead(Exception):
    """The daemon has been killed: nothing that it still tries happens."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What befalls a call, before it has its effect or after. place: which one, anywhere in an operation."""

    place: int
    kind: str  # ENOSPC | EBUSY | EPERM | crash | cancel | monitor dies
    after: bool


class Process(msgspec.Struct, kw_only=True):
    pid: int
    start_time: int
    cwd: str
    argv: tuple[str, ...]
    role: str = ""
    tap: str = ""
    drives: tuple[str, ...] = ()
    started: bool = False
    alive: bool = True

    @property
    def identity(self) -> ProcessIdentity:
        return ProcessIdentity(role=self.role, pid=self.pid, start_time=self.start_time)


class Dm(msgspec.Struct, kw_only=True):
    name: str
    uuid: str
    device: str
    uses: frozenset[str]


class ModelHost:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.boot = 1
        self.links: dict[int, Link] = {}
        self.addresses: dict[int, list[ipaddress.IPv4Interface]] = {}
        self.routes: dict[int, set[ipaddress.IPv4Network]] = {}
        self.loops: dict[str, Loop] = {}
        self.autoclear: set[str] = set()
        self.dms: dict[str, Dm] = {}
        self.processes: dict[int, Process] = {}
        self.tables: dict[tuple[str, str], str] = {}
        self.forwarding = "0"
        self.dead = False
        self.listening = 0
        self.calls = 0
        self.fault: Fault | None = None
        self.fired = ""
        self.at = 0
        self.total = 0
        self.looks = 0
        self.task: asyncio.Task[object] | None = None
        self.protected: Callable[[str], bool] = lambda _vm_id: False
        self.violations: list[str] = []
        self.on_crash: Callable[[], None] = lambda: None
        self.waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._next_index = 1

    # faults

    def arm(self, fault: Fault | None, *, operation: str) -> None:
        """From now on, until disarm. operation: what is done meanwhile, and so how many calls there are."""
        self.calls, self.fault, self.fired = 0, fault, ""
        if fault is not None:
            # small places are drawn often: what was done before spreads them
            spread = (fault.place + self.total) * 2654435761 % (1 << 32) >> 8
            self.at = 1 + spread % CALLS.get(operation, 100)

    def disarm(self) -> bool:
        """Whether the fault happened."""
        self.fault = None
        return bool(self.fired)

    def before(self, what: str) -> int:
        if self.dead:
            raise Dead(what)
        if what.startswith(LOOKS):
            self.looks += 1
            if self.looks % 4:
                return 0  # so many that they would get most of the faults
        self.calls += 1
        self.total += 1
        self._strike(what, self.calls, after=False)
        return self.calls

    def after(self, what: str, number: int) -> None:
        if self.dead:
            raise Dead(what)
        self._strike(what, number, after=True)

    def _strike(self, what: str, number: int, *, after: bool) -> None:
        fault = self.fault
        if fault is None or self.fired or number != self.at or after is not fault.after:
            return
        if after and what.startswith("store:") and fault.kind.startswith("E"):
            return  # SQLite does not fail after the commit
        self.fired = f"{fault.kind} {'after' if after else 'before'} call {number}, {what}"
        match fault.kind:
            case "crash":
                self.crash()
                raise Dead(what)
            case "cancel":
                if self.task is not None:
                    self.task.cancel()
            case "monitor dies":
                living = [p.pid for p in self.processes.values() if p.alive and p.role == "monitor"]
                if living:
                    self.end(max(living))
            case name:
                number = getattr(errno, name)
                if what.startswith(("file:", "process:")):
                    raise OSError(number, os.strerror(number), what)
                code = ErrorCode.NO_SPACE if number == errno.ENOSPC else ErrorCode.BUSY
                raise KernelError(code, f"{what}: {os.strerror(number)}")

    def act(self, what: str, effect: Callable[[], T]) -> T:
        number = self.before(what)
        result = effect()
        self.after(what, number)
        return result

    async def call(self, what: str, effect: Callable[[], T]) -> T:
        number = self.before(what)
        await asyncio.sleep(0)
        if self.dead:
            raise Dead(what)
        result = effect()
        self.after(what, number)
        return result

    # what happens to a host

    def crash(self) -> None:
        """The daemon is killed: its files as they are now are put aside, and are what its successor finds."""
        self.dead = True
        self.on_crash()
        keep_files(self.home, self.home.with_name("kept"))

    def revive(self) -> None:
        """The dead daemon's code has unwound; whatever it did meanwhile did not happen."""
        shutil.rmtree(self.home)
        self.home.with_name("kept").rename(self.home)
        self.dead = False

    def reboot(self) -> None:
        for process in list(self.processes.values()):
            self.end(process.pid)
        self.links.clear()
        self.addresses.clear()
        self.routes.clear()
        self.loops.clear()
        self.autoclear.clear()
        self.dms.clear()
        self.processes.clear()
        self.tables.clear()
        self.forwarding = "0"
        self.boot += 1

    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def end(self, pid: int) -> None:
        process = self.processes[pid]
        process.alive, process.tap, process.drives = False, "", ()
        for future in self.waiting.pop(pid, set()):
            if not future.done():
                future.set_result(None)

    def touch(self, vm_id: str, what: str) -> None:
        """Something of a VM's is changed or taken away."""
        if vm_id and self.protected(vm_id):
            self.violations.append(f"{what} of {vm_id[:12]}, which runs and was left to run")

    # processes

    def spawn(self, cwd: str, argv: tuple[str, ...], *, role: str = "") -> Process:
        pid = max(self.processes, default=FIRST_PID) + 1
        # ticks since boot: pids and start times come again with each boot
        process = Process(pid=pid, start_time=pid - FIRST_PID, cwd=cwd, argv=argv, role=role)
        self.processes[pid] = process
        return process

    def launch(self, argv: list[str], *, role: str, cwd: str, stdout: str) -> ProcessIdentity:
        def effect() -> ProcessIdentity:
            process = self.spawn(cwd, tuple(argv), role=role)
            fields = ["S", "1", *["0"] * 17, str(process.start_time), "0", "0"]
            Path(cwd, f"{role}.pid").write_text(f"{self.boot_id()}\n{process.pid} (sh) {' '.join(fields)}\n")
            return process.identity

        return self.act(f"process:launch {role}", effect)

    def same(self, identity: ProcessIdentity) -> Process | None:
        process = self.processes.get(identity.pid)
        alive = process is not None and process.alive and process.start_time == identity.start_time
        return process if alive else None

    def open_same(self, identity: ProcessIdentity) -> int | None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if self.same(identity) else None

    def send_signal(self, identity: ProcessIdentity, _signum: int) -> bool:
        def effect() -> bool:
            process = self.same(identity)
            if process is None:
                return False
            self.touch(os.path.basename(process.cwd), f"the process {process.argv[0]}")
            if not process.role:
                self.violations.append(f"a process that is not ours was signalled: {process}")
            self.end(process.pid)
            return True

        return self.act("process:signal", effect)

    async def wait_gone(self, identity: ProcessIdentity, *, timeout_s: float | None) -> bool:
        """Does not wait: what does not end at once never will."""
        return await self.call("process:wait", lambda: self.same(identity) is None)

    def search(self, folder: str, *_more: str) -> list[FoundProcess]:
        return self.act(
            "process:search",
            lambda: [
                FoundProcess(pid=p.pid, start_time=p.start_time, cwd=p.cwd, argv=p.argv)
                for p in self.processes.values()
                if p.alive and f"{p.cwd}/".startswith(f"{folder}/")
            ],
        )

    def monitor_in(self, vm_dir: str) -> Process | None:
        living = [p for p in self.processes.values() if p.cwd == vm_dir and p.alive and p.role == "monitor"]
        return living[-1] if living else None

    # loops and dm

    def list_loops(self) -> list[Loop]:
        return self.act("loops:list", lambda: list(self.loops.values()))

    def attach(self, backing_file: str, *, read_only: bool, label: str = "") -> str:
        def effect() -> str:
            if not os.path.exists(backing_file):
                raise KernelError(ErrorCode.HOST_UNSUITABLE, f"{backing_file}: no such file")
            return self.add_loop(backing_file, label)

        return self.act("loops:attach", effect)

    def add_loop(self, backing_file: str, label: str) -> str:
        device = next(d for n in range(1000) if (d := f"/dev/loop{n}") not in self.loops)
        self.loops[device] = Loop(device=device, backing_file=backing_file, deleted=False, label=label)
        return device

    def detach(self, device: str, *, backing_file: str, label: str | None = None) -> None:
        def effect() -> None:
            loop = self.loops.get(device)
            if loop is None or loop.backing_file != backing_file or label not in (None, loop.label):
                return
            mark = marks.parse_loop_label(loop.label)
            self.touch(mark[1] if mark else "", f"the loop {device}")
            if any(device in dm.uses for dm in self.dms.values()):
                self.autoclear.add(device)
            else:
                del self.loops[device]

        self.act("loops:detach", effect)

    def device_size(self, device: str) -> int:
        return os.path.getsize(self.loops[device].backing_file)

    def list_targets(self) -> list[Target]:
        return self.act(
            "dm:list",
            lambda: [Target(name=d.name, uuid=d.uuid, device=d.device) for d in self.dms.values()],
        )

    def find_target(self, uuid: str) -> Target | None:
        return next((target for target in self.list_targets() if target.uuid == uuid), None)

    async def create_dm(self, name: str, *, uuid: str, table: str, read_only: bool = False) -> Target:
        def effect() -> Target:
            for dm in self.dms.values():
                if dm.uuid == uuid:
                    return Target(name=dm.name, uuid=dm.uuid, device=dm.device)
            if name in self.dms:
                raise KernelError(ErrorCode.BUSY, f"dmsetup: {name} exists")
            uses = frozenset(word for word in table.split() if word.startswith("/dev/"))
            there = {*self.loops, *(dm.device for dm in self.dms.values())}
            if uses - there:
                raise KernelError(ErrorCode.HOST_UNSUITABLE, f"dmsetup: no {uses - there}")
            dm = self.add_dm(name, uuid, uses)
            return Target(name=dm.name, uuid=dm.uuid, device=dm.device)

        return await self.call("dm:create", effect)

    def add_dm(self, name: str, uuid: str, uses: frozenset[str] = frozenset()) -> Dm:
        taken = {dm.device for dm in self.dms.values()}
        device = next(d for n in range(1000) if (d := f"/dev/dm-{n}") not in taken)
        self.dms[name] = Dm(name=name, uuid=uuid, device=device, uses=uses)
        return self.dms[name]

    async def remove_dm(self, uuid: str) -> None:
        def effect() -> None:
            dm = next((dm for dm in self.dms.values() if dm.uuid == uuid), None)
            if dm is None:
                return
            holders = [other.uses for other in self.dms.values()]
            holders += [frozenset(p.drives) for p in self.processes.values() if p.alive]
            if any(dm.device in used for used in holders):
                raise KernelError(ErrorCode.CLEANUP_FAILED, f"the device-mapper target {dm.name} is in use")
            self.touch(uuid.rpartition("-")[2], f"the dm target {dm.name}")
            del self.dms[dm.name]
            for device in self.autoclear & dm.uses:
                if not any(device in other.uses for other in self.dms.values()):
                    self.autoclear.discard(device)
                    del self.loops[device]

        await self.call("dm:remove", effect)

    async def dm_status(self, _uuid: str) -> SnapshotStatus | None:
        return await self.call("dm:status", lambda: SnapshotStatus(used=0, total=1 << 20))

    # nft, files

    async def nft_tables(self) -> list[tuple[str, str]]:
        return await self.call("nft:list", lambda: sorted(self.tables))

    async def nft_chains(self) -> list[tuple[str, str, str]]:
        return await self.call(
            "nft:list",
            lambda: [
                (*table, words[1])
                for table, body in self.tables.items()
                for line in body.splitlines()
                if (words := line.split())[:1] == ["chain"]
            ],
        )

    async def nft_apply(self, text: str) -> None:
        def effect() -> None:
            for line in text.splitlines():
                words = line.split()
                if words[:2] == ["delete", "table"]:
                    self.tables.pop((words[2], words[3]), None)
            self.tables.update(ruleset.declared(text))

        await self.call("nft:apply", effect)

    async def nft_listing(self, wanted: Sequence[tuple[str, str]]) -> str | None:
        return await self.call(
            "nft:list",
            lambda: repr([self.tables[t] for t in wanted]) if set(wanted) <= self.tables.keys() else None,
        )

    async def nft_canonical(self, text: str) -> str:
        return repr(list(ruleset.declared(text).values()))

    def sysctl_read(self, _name: str) -> str:
        return self.act("sysctl:read", lambda: self.forwarding)

    def sysctl_write(self, _name: str, value: str) -> None:
        def effect() -> None:
            self.forwarding = value

        self.act("sysctl:write", effect)

    async def make_file(self, path: str, *, size_bytes: int, **_more: object) -> None:
        """Stands for mke2fs, resize2fs, and all that makes a file of a size."""

        def effect() -> None:
            with open(path, "ab") as file:
                file.truncate(size_bytes)

        await self.call(f"file:{os.path.basename(path)}", effect)

    # links

    def add_link(self, name: str, *, kind: str, alias: str = "", mac: str = "", master: int = 0) -> Link:
        if any(link.name == name for link in self.links.values()):
            raise KernelError(ErrorCode.ALREADY_EXISTS, f"cannot create {name}: File exists")
        index, self._next_index = self._next_index, self._next_index + 1
        link = Link(
            index=index, name=name, kind=kind, alias=alias, master=master, mac=mac, up=False, carrier=False
        )
        self.links[index] = link
        return link

    def shown(self, link: Link) -> Link:
        held = any(p.alive and p.tap == link.name for p in self.processes.values())
        return dataclasses.replace(link, carrier=held)


class ModelLinks:
    """system.links.Links on the model."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def close(self) -> None:
        pass

    async def all(self) -> list[Link]:
        host = self._host
        return await host.call("link:list", lambda: [host.shown(link) for link in host.links.values()])

    async def get(self, name: str) -> Link | None:
        host = self._host
        return await host.call(
            f"link:get {name}",
            lambda: next((host.shown(link) for link in host.links.values() if link.name == name), None),
        )

    async def create_bridge(self, name: str, *, mac: str) -> Link:
        host = self._host
        return await host.call("link:bridge", lambda: host.add_link(name, kind="bridge", mac=mac))

    async def create_tap(self, name: str, *, master: int, alias: str, group: int = 0) -> None:
        host = self._host
        await host.call(
            f"link:tap {name}", lambda: host.add_link(name, kind="tun", alias=alias, master=master)
        )

    async def set_alias(self, link: Link, alias: str) -> None:
        await self._change("link:mark", link, lambda there: dataclasses.replace(there, alias=alias))

    async def set_master(self, link: Link, master: int) -> None:
        await self._change("link:master", link, lambda there: dataclasses.replace(there, master=master))

    async def set_up(self, link: Link) -> None:
        await self._change("link:up", link, lambda there: dataclasses.replace(there, up=True))

    async def _change(self, what: str, link: Link, change: Callable[[Link], Link]) -> None:
        host = self._host

        def effect() -> None:
            there = host.links.get(link.index)
            if there is None:
                raise KernelError(ErrorCode.HOST_UNSUITABLE, f"{link.name}: No such device")
            host.touch(vm_of(there), f"the link {link.name}")
            host.links[link.index] = change(there)

        await host.call(what, effect)

    async def delete(self, link: Link) -> None:
        host = self._host

        def effect() -> None:
            there = host.links.get(link.index)
            if there is None:
                return
            host.touch(vm_of(there), f"the link {link.name}")
            if there.kind == "bridge" and any(p.alive and p.tap for p in host.processes.values()):
                host.violations.append(f"the bridge {link.name} was removed under a living machine")
            del host.links[link.index]

        await host.call(f"link:delete {link.name}", effect)

    def name_of(self, index: int) -> str:
        there = self._host.links.get(index)
        return there.name if there else ""

    async def set_proxy_arp(self, _link: Link, _on: bool) -> None:
        pass

    async def add_route(self, link: Link, network: ipaddress.IPv4Network) -> None:
        def effect() -> None:
            self._host.routes.setdefault(link.index, set()).add(network)

        await self._host.call("link:route", effect)

    async def disable_ipv6_address(self, _link: Link) -> None:
        pass

    async def learn_no_linklocal(self, _link: Link) -> None:
        pass

    async def addresses(self) -> list[tuple[int, ipaddress.IPv4Interface]]:
        found = self._host.addresses.items()
        return [(index, one) for index, several in found if index in self._host.links for one in several]

    async def routes(self) -> list[tuple[int, ipaddress.IPv4Network]]:
        found = self._host.routes.items()
        return [(index, one) for index, several in found if index in self._host.links for one in several]

    async def add_address(self, link: Link, address: ipaddress.IPv4Interface) -> None:
        def effect() -> None:
            there = self._host.addresses.setdefault(link.index, [])
            if address not in there:
                there.append(address)

        await self._host.call("link:address", effect)

    async def remove_address(self, link: Link, address: ipaddress.IPv4Interface) -> None:
        self._host.addresses[link.index].remove(address)


def vm_of(link: Link) -> str:
    mark = marks.parse_link_alias(link.alias)
    return mark[1] if mark else ""


def make_socket(path: str) -> None:
    """A socket's file, as a monitor that binds makes it: not over one that is there."""
    try:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    except FileExistsError as error:
        raise BangerError(ErrorCode.MONITOR_FAILED, f"{path}: Address already in use") from error


def keep_files(source: Path, target: Path) -> None:
    """A copy: the database's files byte by byte, everything else as hard links."""
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(mode=0o700)
        for name in names:
            if name.startswith("banger.db"):
                if not name.endswith("-shm"):
                    shutil.copyfile(f"{folder}/{name}", there / name)
            else:
                os.link(f"{folder}/{name}", there / name)
