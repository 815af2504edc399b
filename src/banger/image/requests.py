"""The image room in the api's words: requests to calls, and what is found to replies. Made by daemon/compose.

Owns nothing, and leaves nothing after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from banger.api.replies import CachePruned, CatalogImage, CatalogKernel, ImageCatalog, KernelCatalog
from banger.api.requests import ImportKernel, PullImage, RegisterImage
from banger.image import ownkernel
from banger.image.catalog import KERNELS, DebianImage
from banger.image.kernel import KernelService
from banger.image.oci.auth import Credential
from banger.image.own import OwnFiles
from banger.image.pulling import Wanted
from banger.image.service import ImageService
from banger.model.progress import Progress
from banger.model.records import Image, Kernel


class ImageRequests:
    """Images in the api's words; daemon/contracts.Images."""

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


class KernelRequests:
    """Likewise; daemon/contracts.Kernels."""

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
