"""ImageService: the images that VMs start from, in Paths.images_dir/<id>/.

A managed image owns all it needs: `rootfs.ext4`, `work-seed.tar`, `vmlinux`, `modules/`, `kernel.json`
and `image.json` (its record with relative paths: an image published just before a crash, or brought
along with a state folder, is taken into the store when it is asked for). Slow work happens in
`.staging-<name>` and `.build-<name>` under the flock `.lock-<name>`; publication is one rename. A crash
leaves these two, which the next daemon, or the next try for that name, removes. Called by the vm room and
the daemon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.image import catalog, debian, initramfs
from banger.image.errors import ImageError, from_os_error, invalid, not_found
from banger.image.kernel import KernelService, check_kernel, read_kernel
from banger.image.oci.auth import Credential
from banger.image.oci.blobs import BlobCache, Pruned
from banger.image.oci.endpoint import Access
from banger.image.oci.reference import parse_reference
from banger.image.ocirootfs import make_rootfs
from banger.image.own import OwnFiles, promote, unmanaged
from banger.image.published import discard, find_published
from banger.image.pulling import MakeRootfs, Puller, Wanted
from banger.image.recipe import build
from banger.image.staging import exclusive, remove_tree, sweep
from banger.image.tools import ToolService, ensure_e2fsprogs
from banger.image.workseeds import WorkSeeds
from banger.model import references
from banger.model.names import validate_name
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image
from banger.model.sizes import MIN_DISK, check_size
from banger.system.ext4 import E2fsprogs
from banger.system.lockorder import OrderedLock, Rank


class ImageStore(Protocol):
    """Records of images; banger.store.images implements it. Reads are quick, writes are awaited."""

    def list(self) -> Sequence[Image]: ...

    def get(self, image_id: str) -> Image | None: ...

    def by_name(self, name: str) -> Image | None: ...

    async def put(self, image: Image) -> None: ...

    async def seeded(self, image_id: str, *, path: str, fingerprint: str) -> None: ...

    async def delete(self, image_id: str) -> bool:
        """False when there was none; IN_USE when VMs have it."""
        ...


class ImageService:
    """Images by id or name; builds what the catalog has when it is missing."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        *,
        store: ImageStore,
        kernels: KernelService,
        tools: ToolService,
        make: MakeRootfs = make_rootfs,
    ) -> None:
        """make: of OCI images; tests bring one that is quick."""
        self._root = Path(paths.images_dir)
        self._initramfs_dir = Path(paths.kernels_dir)
        self._tools_dir = Path(paths.tools_dir)
        self._settings = settings
        self._store = store
        self._kernels = kernels
        self._tools = tools
        self.seeds = WorkSeeds(self._root, store)
        self._making_initramfs = OrderedLock(Rank.LEAF, "initramfs")
        self._cache = BlobCache(Path(paths.cache_dir, "blobs"))
        self._puller = Puller(
            self._root, cache=self._cache, store=store, kernels=kernels, programs=self.e2fsprogs, make=make
        )

    def list(self) -> Sequence[Image]:
        return self._store.list()

    def get(self, reference: str) -> Image:
        """By full id, exact name, unique id prefix, or the reference it was pulled by; NOT_FOUND or
        AMBIGUOUS otherwise."""
        found = self._store.get(reference)
        if found is not None:
            return found
        images = self._store.list()
        try:
            wanted = references.resolve(reference, [(image.id, image.name) for image in images], what="image")
        except BangerError as error:
            pulled = _pulled_by(reference, images) if error.code is ErrorCode.NOT_FOUND else None
            if pulled is None:
                raise
            return pulled
        return next(image for image in images if image.id == wanted)

    async def resolve(self, reference: str, progress: Progress = no_progress) -> Image:
        """The image, built first when it is the catalog's and not here; its files are there, its kernel
        is the one that was recorded."""
        try:
            image = self.get(reference)
        except BangerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            entry = self.entries().get(reference)
            if isinstance(entry, catalog.OciImage):
                image = await self._pull_entry(entry, progress)
            else:
                image = await self._obtain(reference, entry, progress=progress)
        await asyncio.to_thread(_require_files, image)
        return image

    async def pull(
        self, wanted: Wanted, *, credentials: Mapping[str, Credential], progress: Progress = no_progress
    ) -> Image:
        """An image of the catalog, of a registry or of a file. What is here already is answered as it is.

        credentials: by registry; used for this pull and kept nowhere.
        """
        if wanted.size_bytes is not None:
            check_size(wanted.size_bytes, what="size", minimum=MIN_DISK)
        entry = None if wanted.file else self.entries().get(wanted.reference)
        if not isinstance(entry, catalog.DebianImage):
            follows = entry is not None
            if entry is not None:
                name = wanted.name or entry.name
                wanted = msgspec.structs.replace(wanted, reference=entry.reference, name=name)
            access = Access(credentials=dict(credentials), registries=self._settings.registries)
            return await self._puller.pull(wanted, access=access, follows=follows, progress=progress)
        entry = replace(
            entry,
            name=validate_name(wanted.name or entry.name),
            kernel=wanted.kernel or entry.kernel,
            size_bytes=wanted.size_bytes or entry.size_bytes,
        )
        image = self._store.by_name(entry.name) or await self._obtain(entry.name, entry, progress=progress)
        await asyncio.to_thread(_require_files, image)
        return image

    async def _pull_entry(self, entry: catalog.OciImage, progress: Progress) -> Image:
        """For a VM: with nobody's login. Where that will not do, the error names the image, as NOT_FOUND
        does: whoever has a login may pull it."""
        try:
            return await self.pull(Wanted(reference=entry.name), credentials={}, progress=progress)
        except BangerError as error:
            if error.code is ErrorCode.PERMISSION_DENIED:
                error.data.setdefault("image", entry.name)
            raise

    def entries(self) -> dict[str, catalog.ImageEntry]:
        """What can be pulled by a name: what is built in, and before it what the configuration adds."""
        added = {
            entry.name: catalog.OciImage(entry.name, entry.reference, entry.description)
            for entry in self._settings.catalog
        }
        return {**catalog.IMAGES, **added}

    def is_here(self, entry: catalog.ImageEntry) -> bool:
        """Whether the entry's name is an image here already, and of an OCI image the one that is meant.

        One that a crash left published and unrecorded is not: whoever asks for it gets it without a build.
        """
        image = self._store.by_name(entry.name)
        if image is None or isinstance(entry, catalog.DebianImage):
            return image is not None
        return parse_reference(entry.reference).digest in (image.oci_pinned, image.oci_digest)

    async def register(self, name: str, files: OwnFiles) -> Image:
        """An image of the user's own files, which stay where they are. ALREADY_EXISTS for a taken name."""
        image = await asyncio.to_thread(unmanaged, name, files)
        await asyncio.to_thread(_make_folder, self._root)
        async with exclusive(self._root / f".lock-{name}"):
            left = await asyncio.to_thread(find_published, self._root, name)
            if left is not None and self._store.get(left.id) is None:
                await self._store.put(left)  # published just before a crash: the name is taken
            await self._store.put(image)
        await self.seeds.ensure(image, key="", files=())
        return self.get(image.id)

    async def promote(self, reference: str, progress: Progress = no_progress) -> Image:
        """Copy an unmanaged image's files in; one that is managed is answered as it is."""
        image = self.get(reference)
        async with exclusive(self._root / f".lock-{image.name}"):
            image = self.get(image.id)
            if image.managed:
                return image
            image = await promote(self._root, image, progress=progress)
            await self._store.put(image)
        return image

    async def sweep(self) -> None:
        """Remove what killed makers of images, kernels and tools have left. For the daemon's start."""
        for folder in (self._root, self._initramfs_dir, self._tools_dir):
            await sweep(folder, debian.remove_work)

    async def prune_cache(self, *, dry_run: bool = False) -> Pruned:
        """Remove what pulls have left in the cache; what one under way uses stays."""
        return await asyncio.to_thread(lambda: self._cache.prune(dry_run=dry_run))

    async def delete(self, reference: str) -> Image:
        """Forget an image and remove its files, but for those of an unmanaged one. IN_USE names the VMs."""
        image = self.get(reference)
        async with exclusive(self._root / f".lock-{image.name}"):
            if not await self._store.delete(image.id):
                raise not_found(f"no image {image.name}: it was deleted meanwhile")
            await asyncio.to_thread(self._discard, image)
        await self.seeds.sweep()
        return image

    def _discard(self, image: Image) -> None:
        discard(self._root, image.id)
        remove_tree(self._initramfs_folder(image))

    def _initramfs_folder(self, image: Image) -> Path:
        return self._initramfs_dir / ".initramfs" / image.id

    async def ensure_initramfs(self, image: Image) -> Path:
        """The shared initramfs for this image's kernel and today's agent; made when one of them is new."""
        async with self._making_initramfs:  # many VMs may be started at once with a new agent
            return await asyncio.to_thread(
                initramfs.ensure_shared,
                Path(image.modules_dir) if image.modules_dir else None,
                initramfs.agent_binary(),
                self._initramfs_folder(image),
                initrd=Path(image.initrd_path) if image.initrd_path else None,
            )

    async def e2fsprogs(self, progress: Progress = no_progress) -> E2fsprogs:
        """The ext4 programs: the host's where they can do all that is needed, else banger's copies."""
        return await ensure_e2fsprogs(self._tools, progress)

    async def _obtain(self, name: str, entry: catalog.DebianImage | None, *, progress: Progress) -> Image:
        """Take over an image that is published but not in the store, or build the catalog's."""
        if entry is None and not await asyncio.to_thread(find_published, self._root, name):
            known = sorted({*self.entries(), *(image.name for image in self._store.list())})
            raise not_found(
                f"no image {name[:200]!a}, neither here nor in the catalog",
                hint=f"there is {', '.join(known)}; banger image pull gets others",
                data={"image": name[:1024]},
            )
        await asyncio.to_thread(_make_folder, self._root)
        async with exclusive(
            self._root / f".lock-{name}",
            waiting=lambda: progress(
                ProgressEvent(step="image", message=f"another process is making the image {name}")
            ),
        ) as lock:
            image = self._store.by_name(name)
            if image is not None:
                return image
            image = await asyncio.to_thread(find_published, self._root, name)
            if image is None:
                if entry is None:
                    raise not_found(f"no image {name!r}")
                image = await build(
                    entry,
                    self._root,
                    kernels=self._kernels,
                    programs=self.e2fsprogs,
                    mirror=self._settings.debian_mirror,
                    lock=lock,
                    progress=progress,
                )
            await self._store.put(image)
            return image


def _pulled_by(reference: str, images: Sequence[Image]) -> Image | None:
    """The newest one that came by this reference, however it is spelled."""
    try:
        spelled = str(parse_reference(reference))
    except ImageError:
        return None
    found = [image for image in images if image.oci_reference == spelled]
    return max(found, key=lambda image: image.created_at, default=None)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making {path}") from error


def _require_files(image: Image) -> None:
    for path in (image.rootfs_path, image.kernel_path):
        if not os.path.exists(path):
            raise invalid(
                f"the image {image.name} is incomplete: {path} is missing",
                hint=f"banger image delete {image.name}, then pull it again",
            )
    folder = Path(image.artifact_dir)
    kernel = read_kernel(folder) if image.artifact_dir else None
    if kernel is not None:
        check_kernel(folder, kernel)
