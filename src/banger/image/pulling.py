"""Pulling an OCI image: from a registry or an archive file into a managed image of banger's.

Under the name's lock: blobs into the cache, then the root file system in a staging folder, published by one
rename. The same digest under the same name is the same image: nothing is brought and nothing is built. A tag
that has moved on gives the name to the new image; the old one goes, or is renamed while VMs have it.
Called by ImageService.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.image import ociimage, published
from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.initramfs import fit_env
from banger.image.kernel import KernelService
from banger.image.oci import archive
from banger.image.oci.blobs import BlobCache, Lease
from banger.image.oci.endpoint import Access
from banger.image.oci.manifest import Layer, PulledImage
from banger.image.oci.pull import pull
from banger.image.oci.reference import Reference, parse_reference
from banger.image.oci.registry import Registry
from banger.image.ocirootfs import make_rootfs
from banger.image.published import ROOTFS, WORK_SEED
from banger.image.staging import exclusive, filled, require_space
from banger.model.ids import new_image_id
from banger.model.names import validate_name
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, now
from banger.system.ext4 import E2fsprogs

DEFAULT_KERNEL = "debian-bookworm"
_STEP = "image"
_SPACE = 256 << 20
_BY_FILE = "archive:"
"""oci_reference of an image that came from a file."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to pull. file: an OCI or docker archive on the host instead. size_bytes: None: content × 1.5."""

    reference: str = ""
    file: str = ""
    name: str = ""
    kernel: str = ""
    size_bytes: int | None = None


class Store(Protocol):
    def list(self) -> Sequence[Image]: ...

    def by_name(self, name: str) -> Image | None: ...

    async def put(self, image: Image) -> None: ...

    async def delete(self, image_id: str) -> bool: ...


class MakeRootfs(Protocol):
    """ocirootfs.make_rootfs; tests bring one that is quick."""

    async def __call__(
        self,
        layers: Sequence[Layer],
        rootfs: Path,
        seed: Path,
        *,
        programs: E2fsprogs,
        size_bytes: int = 0,
        progress: Progress = no_progress,
    ) -> object: ...


class Puller:
    """root: the images folder; programs: of e2fsprogs, obtained when they are missing."""

    def __init__(
        self,
        root: Path,
        *,
        cache: BlobCache,
        store: Store,
        kernels: KernelService,
        programs: Callable[[Progress], Awaitable[E2fsprogs]],
        make: MakeRootfs = make_rootfs,
    ) -> None:
        self._root = root
        self._cache = cache
        self._store = store
        self._kernels = kernels
        self._programs = programs
        self._make_rootfs = make

    async def pull(
        self, wanted: Wanted, *, access: Access, follows: bool = False, progress: Progress
    ) -> Image:
        """The image, as it is in the store. Raises what pull() and archive.load() raise, ALREADY_EXISTS for a
        name that another image has, NO_SPACE, IMAGE_INVALID.

        follows: an image of the same repository gives its name to this one, whatever tag or digest it came by
        (the catalog says another digest now).
        """
        reference = None if wanted.file else parse_reference(wanted.reference)
        name = wanted.name or (ociimage.image_name(reference) if reference else _file_name(wanted.file))
        validate_name(name)
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        async with exclusive(
            self._root / f".lock-{name}",
            waiting=lambda: progress(
                ProgressEvent(step=_STEP, message=f"another process is making the image {name}")
            ),
        ):
            current = await self._current(name)
            source = str(reference) if reference else f"{_BY_FILE}{os.path.basename(wanted.file)}"
            if current is not None and not _may_replace(current, source, reference if follows else None):
                raise _taken(current, wanted)
            if current is not None and reference is not None:
                pinned = await self._pinned(reference, access, progress)
                if pinned and pinned in (current.oci_pinned, current.oci_digest):
                    return _as_it_is(current, wanted, progress)
            with self._cache.lease() as lease:
                pulled = await self._bring(reference, wanted, lease=lease, access=access, progress=progress)
                if current is not None and current.oci_digest == pulled.digest:
                    return _as_it_is(current, wanted, progress)
                _warn_left_out(pulled, progress)
                made = await asyncio.to_thread(self._left_over, name, pulled.digest)
                made = made or await self._make(name, source, pulled, wanted=wanted, progress=progress)
            await self._replace(current, made)
            return made

    async def _current(self, name: str) -> Image | None:
        """The image of that name, taken over where it was published just before a crash."""
        image = self._store.by_name(name)
        if image is None:
            image = await asyncio.to_thread(published.find_published, self._root, name)
            if image is not None:
                await self._store.put(image)
        return image

    def _left_over(self, name: str, digest: str) -> Image | None:
        """Of images published just before a crash the one that is wanted; others go. Blocking."""
        known = {image.id for image in self._store.list()}
        found: Image | None = None
        for image in list(published.all_published(self._root)):
            if image.name != name or image.id in known:
                continue
            if image.oci_digest == digest and found is None:
                found = image
            else:
                published.discard(self._root, image.id)
        return found

    async def _pinned(self, reference: Reference, access: Access, progress: Progress) -> str:
        def tell(text: str) -> None:
            progress(ProgressEvent(step="pull", message=f"pulling {reference}: {text}"))

        async with Registry.open(reference, access, tell=tell) as registry:
            return await registry.resolve()

    async def _bring(
        self,
        reference: Reference | None,
        wanted: Wanted,
        *,
        lease: Lease,
        access: Access,
        progress: Progress,
    ) -> PulledImage:
        if reference is not None:
            return await pull(reference, lease=lease, access=access, progress=progress)
        try:
            # not blocking: a pipe of that name would hold up the daemon
            descriptor = os.open(wanted.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise invalid(f"{wanted.file} is no file")
            with open(descriptor, "rb") as file:
                return await archive.load(
                    file,
                    lease=lease,
                    name=wanted.reference,
                    what=os.path.basename(wanted.file),
                    progress=progress,
                )
        except OSError as error:
            raise from_os_error(error, f"reading {wanted.file}") from error

    async def _make(
        self, name: str, source: str, pulled: PulledImage, *, wanted: Wanted, progress: Progress
    ) -> Image:
        """Into staging, published under a new id; not in the store yet."""
        kernel_name = wanted.kernel or DEFAULT_KERNEL
        await self._kernels.ensure(kernel_name, progress)
        programs = await self._programs(progress)
        size = sum(layer.size for layer in pulled.layers)
        await asyncio.to_thread(require_space, self._root, 3 * size + _SPACE, what=f"making {name}")
        image_id = new_image_id()
        final = self._root / image_id
        async with filled(final, name=name, what=f"making the image {name}") as staging:
            await self._make_rootfs(
                pulled.layers,
                staging / ROOTFS,
                staging / WORK_SEED,
                programs=programs,
                size_bytes=wanted.size_bytes or 0,
                progress=progress,
            )
            initrd = await self._kernels.link(kernel_name, staging)
            image = published.new_record(staging, image_id=image_id, name=name, initrd=initrd)
            image = msgspec.structs.replace(
                image, oci_reference=source, oci_digest=pulled.digest, oci_pinned=pulled.pinned
            )
            published.write_record(staging, ociimage.with_config(image, pulled.config))
        return await asyncio.to_thread(published.read_made, final)

    async def _replace(self, old: Image | None, new: Image) -> None:
        """Give the name to the new image. VMs keep the old one: it is renamed, and goes with another pull."""
        if old is not None:
            try:
                await self._store.delete(old.id)
                await asyncio.to_thread(published.discard, self._root, old.id)
            except BangerError as error:
                if error.code is not ErrorCode.IN_USE:
                    raise
                name = f"{old.name[:50].rstrip('-')}-{old.id[:12]}"
                await asyncio.to_thread(published.rename, Path(old.artifact_dir), name)
                await self._store.put(msgspec.structs.replace(old, name=name, updated_at=now()))
        await self._store.put(new)


def _file_name(path: str) -> str:
    """A name from an archive's: `app.tar` is app."""
    base = os.path.basename(path)
    for suffix in (".tar.gz", ".tar.zst", ".tgz", ".tar"):
        base = base.removesuffix(suffix)
    return ociimage.as_name(base)


def _may_replace(current: Image, source: str, follows: Reference | None) -> bool:
    """Whether what is from source may have the current image's name (from the same source it may be it)."""
    if not current.oci_digest or follows is None or current.oci_reference.startswith(_BY_FILE):
        return bool(current.oci_digest) and current.oci_reference == source
    former = parse_reference(current.oci_reference)
    return (former.registry, former.repository) == (follows.registry, follows.repository)


def _taken(current: Image, wanted: Wanted) -> ImageError:
    what = f"it is from {current.oci_reference}" if current.oci_reference else "it is no pulled image"
    return ImageError(
        ErrorCode.ALREADY_EXISTS,
        f"there is an image {current.name} already, and {what}",
        hint=f"give this one another name: banger image pull {wanted.reference or '--file …'} --name NAME",
    )


def _warn_left_out(pulled: PulledImage, progress: Progress) -> None:
    """What of its config guests will not get (initramfs.py says why)."""
    config = pulled.config
    if left := fit_env(config.env)[1]:
        names = ", ".join(ascii(name[:60])[1:-1] for name in left[:5])
        message = f"{len(left)} of the image's variables cannot be passed on to guests: {names}"
        progress(ProgressEvent(step="warning", warning=True, message=message))


def _as_it_is(current: Image, wanted: Wanted, progress: Progress) -> Image:
    progress(ProgressEvent(step=_STEP, message=f"{current.name} is up to date"))
    if wanted.size_bytes or wanted.kernel:
        progress(
            ProgressEvent(
                step="warning",
                warning=True,
                message=f"{current.name} is here already, as it was made: --size and --kernel change nothing",
            )
        )
    return current
