"""Putting the daemon's services together: the only place that knows every room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from banger.api.replies import CachePruned, CatalogImage, CatalogKernel, ImageCatalog, KernelCatalog
from banger.api.requests import ImportKernel, PullImage, RegisterImage
from banger.config.instance import instance_id
from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.daemon.contracts import Services
from banger.disk.strategies import RootDisks
from banger.helper.inprocess import InProcessHelper
from banger.helper.validate import MONITOR_PROGRAMS
from banger.image import ownkernel
from banger.image.catalog import KERNELS, DebianImage
from banger.image.kernel import KernelService
from banger.image.oci.auth import Credential
from banger.image.own import OwnFiles
from banger.image.pulling import Wanted
from banger.image.service import ImageService
from banger.image.tools import ToolService
from banger.model.deadlines import USUAL, Deadlines
from banger.model.progress import Progress
from banger.model.records import Image, Kernel
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.network.names import Names
from banger.network.surroundings import Lookout
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.settings import SettingTable
from banger.store.vms import VMTable
from banger.system.process import boot_id
from banger.vm.background import Background
from banger.vm.handles import HandleCache
from banger.vm.names import GuestNames
from banger.vm.nat import Nat
from banger.vm.service import VMService
from banger.vm.services import Services as VMServices
from banger.vm.steps import CrashPoint, no_crash
from banger.vm.workdisk import WorkDisk
from banger.vmm.select import ChosenMonitor


class StoredImages:
    """contracts.Images: the wire's words for the image room's."""

    def __init__(self, images: ImageService) -> None:
        self._images = images

    def list(self) -> Sequence[Image]:
        return self._images.list()

    def catalog(self) -> ImageCatalog:
        return ImageCatalog(
            images=tuple(
                CatalogImage(
                    name=name,
                    kind="debian" if isinstance(entry, DebianImage) else "oci",
                    source=entry.suite if isinstance(entry, DebianImage) else entry.reference,
                    description=entry.description,
                    here=self._images.is_here(entry),
                )
                for name, entry in sorted(self._images.entries().items())
            )
        )

    def resolve(self, reference: str) -> Image:
        return self._images.get(reference)

    async def pull(self, request: PullImage, progress: Progress) -> Image:
        return await self._images.pull(
            Wanted(
                reference=request.reference,
                file=request.file,
                name=request.name,
                kernel=request.kernel,
                size_bytes=request.size_bytes,
            ),
            credentials={
                registry: Credential(
                    username=login.username,
                    password=login.password,
                    identity_token=login.identity_token,
                    registry_token=login.registry_token,
                )
                for registry, login in request.credentials.items()
            },
            progress=progress,
        )

    async def register(self, request: RegisterImage) -> Image:
        files = OwnFiles(
            rootfs=request.rootfs, kernel=request.kernel, initrd=request.initrd, modules=request.modules
        )
        return await self._images.register(request.name, files)

    async def promote(self, reference: str, progress: Progress) -> Image:
        return await self._images.promote(reference, progress)

    async def prune_cache(self, *, dry_run: bool) -> CachePruned:
        found = await self._images.prune_cache(dry_run=dry_run)
        return CachePruned(blobs=len(found.removed), freed_bytes=found.freed, in_use=len(found.in_use))

    async def delete(self, reference: str) -> Image:
        return await self._images.delete(reference)


class HostKernels:
    """contracts.Kernels: likewise."""

    def __init__(self, kernels: KernelService) -> None:
        self._kernels = kernels

    def list(self) -> Sequence[Kernel]:
        return self._kernels.list()

    def get(self, name: str) -> Kernel:
        return self._kernels.get(name)

    def catalog(self) -> KernelCatalog:
        here = {kernel.name for kernel in self._kernels.list()}
        return KernelCatalog(
            kernels=tuple(
                CatalogKernel(name=name, distro=entry.distro, suite=entry.suite, here=name in here)
                for name, entry in KERNELS.items()
            )
        )

    async def pull(self, name: str, progress: Progress) -> Kernel:
        return await self._kernels.ensure(name, progress)

    async def take_in(self, request: ImportKernel, progress: Progress) -> Kernel:
        def fill(staging: Path) -> Kernel:
            return ownkernel.fill(Path(request.folder), staging, name=request.name)

        return await self._kernels.take_in(request.name, fill, progress)

    async def remove(self, name: str) -> Kernel:
        return await self._kernels.remove(name)


async def compose(
    paths: Paths,
    settings: Settings,
    *,
    crash_point: CrashPoint = no_crash,
    programs: frozenset[str] = MONITOR_PROGRAMS,
    deadlines: Deadlines = USUAL,
) -> Services:
    """Store, helper, network, images and VMService for these paths, opened (reconciled with the host).

    The caller holds the lock on the state folder and calls close() in the end. Raises BangerError.
    crash_point, programs (that may be launched) and deadlines are for tests.
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
    firewall = Firewall(helper, settings, records=vm_table.list, before=SettingTable(database))
    network = HostNetwork(helper, settings, firewall=firewall, followers=(names,))

    async def bridge() -> str:
        return (await tools.ensure_tool("vhost-device-vsock")).path

    chosen = ChosenMonitor(settings, bridge, deadlines=deadlines)
    key_path = settings.ssh_key_path or f"{paths.ssh_dir}/id_ed25519"

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
                WorkDisk(images, ssh_key_path=key_path),
                GuestNames(names),
                Nat(firewall, Lookout(settings)),
            ),
            deadlines=deadlines,
        ),
        crash_point=crash_point,
    )

    background = Background(vms, settings)
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
        await vms.open()
    except BaseException:
        await close()
        raise
    background.start()
    return Services(
        instance=instance,
        vms=vms,
        images=StoredImages(images),
        kernels=HostKernels(kernels),
        warnings=names.problems,
        close=close,
    )
