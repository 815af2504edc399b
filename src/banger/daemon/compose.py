"""Putting the daemon's services together: the only place that knows every room."""

from __future__ import annotations

import asyncio
from functools import partial

from banger.config.instance import instance_id
from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.daemon.contracts import Services
from banger.disk.strategies import RootDisks
from banger.helper.inprocess import InProcessHelper
from banger.helper.validate import MONITOR_PROGRAMS
from banger.image.diskfolder import DiskFolders
from banger.image.kernel import KernelService
from banger.image.requests import ImageRequests, KernelRequests
from banger.image.service import ImageService
from banger.image.tools import ToolService
from banger.model.deadlines import USUAL, Deadlines
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.network.names import Names
from banger.network.surroundings import Lookout, who_forwards
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.settings import SettingTable
from banger.store.vms import VMTable
from banger.system.process import boot_id
from banger.vm.background import KEEP_INTERVAL_S, Background
from banger.vm.handles import HandleCache
from banger.vm.names import GuestNames
from banger.vm.nat import Nat
from banger.vm.service import VMService
from banger.vm.services import Services as VMServices
from banger.vm.steps import CrashPoint, no_crash
from banger.vm.workdisk import WorkDisk
from banger.vmm.select import ChosenMonitor
from banger.workspace.service import WorkspaceService
from banger.workspace.stage import stage_disk, stage_guest


async def compose(
    paths: Paths,
    settings: Settings,
    *,
    crash_point: CrashPoint = no_crash,
    programs: frozenset[str] = MONITOR_PROGRAMS,
    deadlines: Deadlines = USUAL,
    keep_interval_s: float = KEEP_INTERVAL_S,
) -> Services:
    """Store, helper, network, images and VMService for these paths, opened (reconciled with the host).

    The caller holds the lock on the state folder and calls close() in the end. Raises BangerError.
    crash_point, programs (that may be launched), deadlines and keep_interval_s are for tests.
    """
    instance = instance_id(paths.state_dir)
    database = await Database.open(paths.database)
    tools = ToolService(paths, settings)
    table = ImageTable(database)
    kernels = KernelService(paths, settings, tools=tools, images=table.list)
    images = ImageService(paths, settings, store=table, kernels=kernels, tools=tools)
    helper = InProcessHelper(instance, paths, programs=programs)
    names = Names(settings, helper)
    vm_table = VMTable(database)
    before = SettingTable(database)
    firewall = Firewall(helper, settings, records=vm_table.list, before=before, others=who_forwards)
    network = HostNetwork(helper, settings, firewall=firewall, followers=(names,))

    async def bridge() -> str:
        return (await tools.ensure_tool("vhost-device-vsock")).path

    chosen = ChosenMonitor(settings, bridge, deadlines=deadlines)
    key_path = settings.ssh_key_path or f"{paths.ssh_dir}/id_ed25519"

    workspaces = WorkspaceService(
        paths.work_dir,
        stage_guest=stage_guest,
        stage_disk=partial(stage_disk, read_disk=DiskFolders(images.e2fsprogs).read),
    )
    vms = VMService(
        VMServices(
            settings=settings,
            paths=paths,
            instance=instance,
            boot_id=boot_id(),
            table=vm_table,
            cache=HandleCache(boot_id()),
            helper=helper,
            images=images,
            network=network,
            disks=RootDisks(
                settings,
                vms_dir=paths.vms_dir,
                programs=images.e2fsprogs,
                helper=helper,
                instance=instance,
            ),
            find_monitor=chosen,
            find_monitor_of=chosen.of,
            capabilities=(
                WorkDisk(images, ssh_key_path=key_path, file_sync=settings.file_sync),
                GuestNames(names),
                Nat(firewall, Lookout(settings)),
            ),
            deadlines=deadlines,
            workspaces=workspaces,
        ),
        crash_point=crash_point,
    )

    background = Background(vms, settings, keep_interval_s=keep_interval_s)
    sweeping = asyncio.create_task(images.sweep(), name="sweep of images")

    async def close() -> None:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        await background.close()
        await vms.close()
        await network.close()
        await names.close()
        await helper.close()
        await database.close()

    try:
        await names.open()
        await workspaces.open()
        await vms.open()
    except BaseException:
        await close()
        raise
    background.start()
    return Services(
        instance=instance,
        vms=vms,
        images=ImageRequests(images),
        kernels=KernelRequests(kernels),
        works=workspaces,
        warnings=names.problems,
        close=close,
    )
