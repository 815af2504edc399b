"""Building an image by the catalog's Debian recipe into a managed image of banger's.

Under the name's lock: mmdebstrap (debian.py) into `.build-<name>`, its tar rewritten into `.staging-<name>`
and made an ext4 there, published by one rename under a new id. A crash leaves these two, which the next
daemon removes, or the next try for that name. Called by ImageService.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from banger.image import debian
from banger.image.archive import debian_architecture
from banger.image.catalog import DebianImage
from banger.image.kernel import KernelService
from banger.image.published import ROOTFS, WORK_SEED, new_record, read_made, write_record
from banger.image.staging import filled, require_space
from banger.model.ids import new_image_id
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import Image
from banger.system import ext4
from banger.system.ext4 import E2fsprogs

_SPACE = 2 << 30


async def build(
    entry: DebianImage,
    root: Path,
    *,
    kernels: KernelService,
    programs: Callable[[Progress], Awaitable[E2fsprogs]],
    mirror: str,
    lock: int,
    progress: Progress,
) -> Image:
    """The image in its folder below root; not in the store yet. lock: the descriptor of the name's lock."""
    work = root / f".build-{entry.name}"
    await debian.remove_work(work)
    await asyncio.to_thread(require_space, root, _SPACE, what=f"building {entry.name}")
    await kernels.ensure(entry.kernel, progress)
    e2fsprogs = await programs(progress)
    image_id = new_image_id()
    final = root / image_id
    try:
        async with filled(final, name=entry.name, what=f"building the image {entry.name}") as staging:
            work.mkdir(mode=0o755)
            await _make_rootfs(
                entry, staging, work=work, programs=e2fsprogs, mirror=mirror, lock=lock, progress=progress
            )
            initrd = await kernels.link(entry.kernel, staging)
            image = new_record(staging, image_id=image_id, name=entry.name, initrd=initrd)
            image = msgspec.structs.replace(image, docker=entry.docker, recipe=f"debian {entry.suite}")
            write_record(staging, image)
    finally:
        await debian.remove_work(work)
    return await asyncio.to_thread(read_made, final)


async def _make_rootfs(
    entry: DebianImage,
    staging: Path,
    *,
    work: Path,
    programs: E2fsprogs,
    mirror: str,
    lock: int,
    progress: Progress,
) -> None:
    """The root file system and the work seed."""
    tar = staging / "root.tar"
    rewritten = await debian.build_tree(
        entry,
        mirror=mirror,
        architecture=debian_architecture(),
        work=work,
        lock=lock,
        root_tar=tar,
        seed_tar=staging / WORK_SEED,
        progress=progress,
    )
    progress(ProgressEvent(step="rootfs", message=f"writing the root file system of {entry.name}"))
    rootfs = staging / ROOTFS
    size = max(entry.size_bytes, rewritten.content_bytes * 3 // 2)
    await ext4.make(
        rootfs, size_bytes=-(-size // (1 << 20)) << 20, programs=programs, tar=tar, label="banger-root"
    )
    await ext4.set_xattrs(rootfs, rewritten.xattrs, programs=programs)
    await ext4.check(rootfs, programs=programs)
    rootfs.chmod(0o444)
    tar.unlink()
