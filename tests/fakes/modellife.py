"""One life of a daemon's VM services on a model host (modelhost.py), and what they talk to there.

Store, scratch files, helper, network, root disks, work disk and VMService are the product's own. The
monitor, the guest in it and the image are played. What the product reads from the kernel or runs as a program
is led to the model by `led_to`, for as long as a test lasts.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import pytest

from banger.config.instance import instance_id
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings, VMDefaults
from banger.disk.dmsnapshot import DmSnapshot
from banger.disk.strategies import RootDisks
from banger.guest.errors import GuestUnreachable
from banger.guest.ready import SOCKET
from banger.guest.ssh import KeyPair
from banger.helper.inprocess import InProcessHelper
from banger.image.service import ImageService
from banger.image.workseeds import SeedStore, WorkSeeds
from banger.model.progress import Progress
from banger.model.records import Image, ProcessIdentity, now
from banger.network.bridges import bridges_of
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.settings import SettingTable
from banger.store.vms import VMTable
from banger.system import devicemapper, ext4, links, loops, mounts, nft, process, sysctl
from banger.system.ext4 import E2fsprogs
from banger.vm import handles, lifecycle, planner, reconcile, service, start, workdisk
from banger.vm.nat import Nat
from banger.vm.service import VMService
from banger.vm.services import Services
from banger.vm.workdisk import WorkDisk
from banger.vmm.errors import MonitorError
from banger.vmm.protocol import (
    API_SOCKET,
    CONSOLE_LOG,
    MONITOR_LOG,
    VSOCK_SOCKET,
    Exit,
    Launcher,
    Machine,
    MachineSpec,
    Monitor,
    MonitorInfo,
    MonitorKind,
)
from tests.fakes.modelhost import Dead, ModelHost, ModelLinks, make_socket
from tests.fakes.workspaces import FakeWorkspaces

MIB = 1 << 20
T = TypeVar("T")
P = ParamSpec("P")
IMAGE_ID = "ab" * 32


class ModelHelper(InProcessHelper):
    """The product's, but for the one look into /proc that it takes itself."""

    def __init__(self, host: ModelHost, instance: str, paths: Paths) -> None:
        super().__init__(instance, paths)
        self._host = host

    def _runs_for_us(self, identity: ProcessIdentity) -> bool:
        there = self._host.same(identity)
        return there is not None and there.cwd.startswith(f"{self._paths.vms_dir}/")


class ModelDatabase(Database):
    """The product's store; transactions run at once, and can be the one that fails or the last."""

    host: ModelHost

    async def write(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        return await self.host.call("store:write", lambda: self._transact(change, durable))


class ModelReady:
    """guest.ready.ReadyListener: its socket's file is there; the guest's words come from the model."""

    def __init__(self, host: ModelHost, vm_dir: str) -> None:
        self._host = host
        self._vm_dir = vm_dir
        self._bound = False
        self.ending = ""
        self.ending_message = ""

    async def start(self) -> None:
        path = Path(self._vm_dir, SOCKET)

        def effect() -> None:
            path.unlink(missing_ok=True)
            make_socket(str(path))

        await self._host.call("file:ready", effect)
        self._bound = True
        self._host.listening += 1

    async def wait_ready(self) -> None:
        while True:
            monitor = self._host.monitor_in(self._vm_dir)
            if monitor is not None and monitor.started:
                return
            await asyncio.get_running_loop().create_future()  # a machine that has died: nobody calls

    async def aclose(self) -> None:
        bound, self._bound = self._bound, False
        await asyncio.sleep(0)  # its tasks end
        if bound:
            self._host.listening -= 1
            if not self._host.dead:
                Path(self._vm_dir, SOCKET).unlink(missing_ok=True)


class ModelAgent:
    """guest.agent.AgentClient, as far as a stop needs it."""

    def __init__(self, host: ModelHost, pid: int) -> None:
        self._host = host
        self._pid = pid

    async def shutdown(self, _kind: str) -> None:
        await self._host.call("guest:shutdown", lambda: self._host.end(self._pid))

    async def aclose(self) -> None:
        pass


class ModelMachine:
    def __init__(self, host: ModelHost, processes: tuple[ProcessIdentity, ...]) -> None:
        self._host = host
        self._processes = processes
        self._pid = processes[0].pid

    @property
    def processes(self) -> tuple[ProcessIdentity, ...]:
        return self._processes

    def _alive(self) -> None:
        if self._host.same(self._processes[0]) is None:
            raise MonitorError("the monitor has ended", call="PUT")

    async def configure(self, spec: MachineSpec) -> None:
        host = self._host

        def effect() -> None:
            self._alive()
            names = {link.name for link in host.links.values()}
            devices = {dm.device for dm in host.dms.values()}
            tap = spec.network[0].tap
            if tap not in names or any(p.alive and p.tap == tap for p in host.processes.values()):
                raise MonitorError(f"the tap {tap} cannot be opened", call="PUT /network-interfaces")
            for drive in spec.drives:
                if drive.path not in devices and not Path(spec.vm_dir, drive.path).exists():
                    raise MonitorError(f"{drive.path} cannot be opened", call="PUT /drives")
            make_socket(f"{spec.vm_dir}/{VSOCK_SOCKET}")
            machine = host.processes[self._pid]
            machine.tap, machine.drives = tap, tuple(drive.path for drive in spec.drives)

        await host.call("monitor:configure", effect)

    async def start(self) -> None:
        def effect() -> None:
            self._alive()
            self._host.processes[self._pid].started = True

        await self._host.call("monitor:start", effect)

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    async def ctrl_alt_del(self) -> None:
        await self._host.call("monitor:button", lambda: self._host.end(self._pid))

    async def flush_metrics(self) -> None:
        raise NotImplementedError

    async def exited(self) -> Exit:
        host = self._host
        while host.same(self._processes[0]) is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = host.waiting.setdefault(self._pid, set())
            waiting.add(future)
            try:
                await future
            finally:
                waiting.discard(future)
        return Exit(status=None, reason="unknown")

    async def close(self) -> None:
        await asyncio.sleep(0)


class ModelMonitor:
    """Two processes a machine, as with QEMU: the guest's vsock in one, the guest in the other."""

    info = MonitorInfo(
        kind=MonitorKind.FIRECRACKER, path="/opt/firecracker", version=(1, 0, 0), features=frozenset({"kvm"})
    )

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def launch(self, spec: MachineSpec, launcher: Launcher) -> Machine:
        found: list[ProcessIdentity] = []
        for role, program in (("vsock", "/opt/vhost-device-vsock"), ("monitor", "/opt/firecracker")):
            one = await launcher.launch(
                [program], role=role, vm_id=spec.vm_id, vm_dir=spec.vm_dir, stdout=MONITOR_LOG
            )
            found.insert(0, one)
        await self._host.call("monitor:socket", lambda: make_socket(f"{spec.vm_dir}/{API_SOCKET}"))
        return ModelMachine(self._host, tuple(found))

    async def adopt(self, vm_dir: str, processes: tuple[ProcessIdentity, ...]) -> Machine:
        return await self._host.call("monitor:adopt", lambda: ModelMachine(self._host, processes))


class ModelImages:
    def __init__(self, image: Image, folder: Path) -> None:
        self._image = image
        self._folder = folder
        self.seeds = WorkSeeds(folder, cast(SeedStore, None))  # its one method is led to the model

    def get(self, _reference: str) -> Image:
        return self._image

    async def resolve(self, _reference: str, _progress: Progress) -> Image:
        return self._image

    async def ensure_initramfs(self, _image: Image) -> Path:
        return self._folder / "initramfs.img"

    async def e2fsprogs(self) -> E2fsprogs:
        return E2fsprogs()


class Life:
    """What daemon/compose.py makes, on the model."""

    def __init__(
        self, vms: VMService, *, services: Services, network: HostNetwork, database: Database
    ) -> None:
        self.vms = vms
        self.services = services
        self.network = network
        self._database = database

    @classmethod
    async def begin(cls, host: ModelHost, root_disk: str) -> Life:
        """Without reconcile: call vms.open()."""
        paths = resolve_paths({"BANGER_HOME": str(host.home)})
        instance = instance_id(paths.state_dir)
        database = await ModelDatabase.open(paths.database)
        assert isinstance(database, ModelDatabase)
        database.host = host
        image = image_in(Path(paths.images_dir, IMAGE_ID))
        settings = Settings(
            root_disk=root_disk,
            tap_pool_size=2,
            vm_defaults=VMDefaults(vcpu=1, memory_mib=128, disk_size=64 * MIB, system_overlay_size=64 * MIB),
        )
        helper = ModelHelper(host, instance, paths)
        bridges = bridges_of(settings, guests=4)  # the third VM is on a second one
        firewall = Firewall(
            helper,
            settings,
            records=VMTable(database).list,
            before=SettingTable(database),
            bridges=bridges,
        )
        network = HostNetwork(helper, settings, firewall=firewall, bridges=bridges)
        images = cast(ImageService, ModelImages(image, Path(paths.images_dir)))
        monitor = ModelMonitor(host)

        async def find_monitor() -> Monitor:
            return monitor

        async def find_monitor_of(_vm_dir: str) -> Monitor:
            return monitor

        services = Services(
            settings=settings,
            paths=paths,
            workspaces=FakeWorkspaces(),
            instance=instance,
            boot_id=host.boot_id(),
            table=VMTable(database),
            cache=handles.HandleCache(host.boot_id()),
            helper=helper,
            images=images,
            network=network,
            disks=RootDisks(
                settings, vms_dir=paths.vms_dir, programs=images.e2fsprogs, helper=helper, instance=instance
            ),
            find_monitor=find_monitor,
            find_monitor_of=find_monitor_of,
            capabilities=(WorkDisk(images, ssh_key_path=f"{paths.ssh_dir}/id_ed25519"), Nat(firewall)),
        )

        def crash_point(point: str) -> None:
            # what an error there would be comes from the calls beside it
            if host.fault is None or not host.fault.kind.startswith("E"):
                host.act(f"point:{point}", lambda: None)

        vms = VMService(services, crash_point=crash_point)
        return cls(vms, services=services, network=network, database=database)

    async def end(self) -> None:
        """As compose's close(). Of a daemon that was killed only Python's side of it is left."""
        await self.vms.close()
        await self.network.close()
        await self._database.close()


def image_in(folder: Path) -> Image:
    return Image(
        id=IMAGE_ID,
        name="debian-bookworm",
        created_at=now(),
        updated_at=now(),
        artifact_dir=str(folder),
        rootfs_path=str(folder / "rootfs.ext4"),
        kernel_path=str(folder / "vmlinux"),
    )


async def make_home(home: Path) -> None:
    """A state folder with the image, and nothing else."""
    paths = resolve_paths({"BANGER_HOME": str(home)})
    folder = Path(paths.images_dir, IMAGE_ID)
    folder.mkdir(parents=True)
    for name in ("rootfs.ext4", "vmlinux", "../initramfs.img"):
        (folder / name).write_bytes(bytes(4096))
    Path(paths.vms_dir).mkdir(mode=0o700)
    instance_id(paths.state_dir)
    database = await Database.open(paths.database)
    await ImageTable(database).put(image_in(folder))
    await database.close()


def led_to(host: ModelHost, patch: pytest.MonkeyPatch, plans: list[planner.Plan]) -> None:
    """Until patch.undo(): the kernel, programs and threads are the model's. plans: each that is made."""

    async def at_once(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    async def key(_path: str, *_comment: str) -> KeyPair:
        path = f"{host.home}/key"
        Path(path).touch()
        return KeyPair(private_path=path, public_key="ssh-ed25519 AAAA")

    async def connect(vm_dir: str) -> ModelAgent:
        monitor = await host.call("guest:connect", lambda: host.monitor_in(vm_dir))
        bridges = [p for p in host.processes.values() if p.cwd == vm_dir and p.alive and p.role == "vsock"]
        if monitor is None or not bridges:
            raise GuestUnreachable("the agent does not answer")
        return ModelAgent(host, monitor.pid)

    async def seed(_self: WorkSeeds, image: Image, **_more: object) -> Path:
        return Path(image.artifact_dir, "work-seed.tar")

    async def make_work_disk(path: str, *, size_bytes: int, **_more: object) -> None:
        await host.make_file(path, size_bytes=size_bytes)

    async def grow(_disk: DmSnapshot, _device: str, _size_bytes: int) -> None:
        await host.call("dm:grow", lambda: None)

    class Agents:
        """The class, of which only this one is called."""

    Agents.connect = staticmethod(connect)  # type: ignore[attr-defined]

    ids = iter(range(10_000))
    real_plan, real_write, real_remove = planner.plan, handles.write_scratch, service.remove_folder

    def planned(world: planner.World) -> planner.Plan:
        plans.append(real_plan(world))
        return plans[-1]

    patch.setattr(asyncio, "to_thread", at_once)
    # two by two they share what the names on the host are made of
    patch.setattr(service, "new_vm_id", lambda: f"{(n := next(ids)) // 2:08x}{n:04x}".ljust(64, "0"))
    patch.setattr(links, "Links", lambda: ModelLinks(host))
    ready = {"ReadyListener": lambda vm_dir: ModelReady(host, vm_dir)}
    stand_ins: dict[object, dict[str, object]] = {
        loops: {"list_loops": host.list_loops, "attach": host.attach, "detach": host.detach},
        devicemapper: {
            "unsuitable": lambda: "",
            "list_targets": host.list_targets,
            "find": host.find_target,
            "device_size": host.device_size,
            "create": host.create_dm,
            "remove": host.remove_dm,
            "status": host.dm_status,
        },
        process: {
            "boot_id": host.boot_id,
            "open_same": host.open_same,
            "launch": host.launch,
            "send_signal": host.send_signal,
            "wait_gone": host.wait_gone,
            "search": host.search,
        },
        nft: {
            "tables": host.nft_tables,
            "apply": host.nft_apply,
            "chains": host.nft_chains,
            "listing": host.nft_listing,
            "canonical": host.nft_canonical,
        },
        sysctl: {"read": host.sysctl_read, "write": host.sysctl_write},
        mounts: {"mount_points": list},
        ext4: {"make": host.make_file, "grow": host.make_file},
        WorkSeeds: {"ensure": seed},
        workdisk: {"make_work_disk": make_work_disk, "ensure_user_key": key},
        start: {"ensure_host_key": key},
        lifecycle: {**ready, "AgentClient": Agents},
        reconcile: {**ready, "plan": planned},
        DmSnapshot: {"_grow": grow},
        handles: {
            "write_scratch": lambda vm_dir, new: host.act("file:scratch", lambda: real_write(vm_dir, new))
        },
        service: {
            "remove_folder": lambda path: host.act("file:folder", lambda: real_remove(path)),
        },
    }
    for place, names in stand_ins.items():
        for name, stand_in in names.items():
            patch.setattr(place, name, stand_in)


def guest_ends(host: ModelHost, life: Life, *, vm_id: str, saying: str) -> None:
    """The guest powers off, reboots or panics ("")."""
    vm_dir = life.services.paths.vm_dir(vm_id)
    monitor = host.monitor_in(vm_dir)
    if monitor is None:
        raise Dead("no such guest")
    if saying:
        with open(f"{vm_dir}/{CONSOLE_LOG}", "a", encoding="utf-8") as console:
            console.write(f"banger-agent: ending {saying}\n")
    host.end(monitor.pid)
