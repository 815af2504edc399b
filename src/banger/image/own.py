"""Images of the user's own files: registered where they lie, promoted by copying them in.

An unmanaged image is a record that points at the user's files, which stay theirs. Promotion copies into a
staging folder under the name's lock and publishes by one rename under the image's id, so that VMs which
have it keep it. A crash leaves the staging folder, which the next try for that name removes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from pathlib import Path

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.image import published
from banger.image.kernel import INITRD, MODULES, VMLINUX, write_kernel
from banger.image.seeds import copy_home
from banger.image.staging import filled, require_space
from banger.model.ids import new_image_id
from banger.model.names import validate_name
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import Image, Kernel, now
from banger.system.run import run

_EXT_MAGIC_AT = 0x438
_COPY_TIMEOUT_S = 3600.0
_STEP = "image"


class OwnFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths on the host. kernel: an uncompressed vmlinux; initrd and modules: "" for none."""

    rootfs: str
    kernel: str
    initrd: str = ""
    modules: str = ""


def unmanaged(name: str, files: OwnFiles) -> Image:
    """The record, its files looked at. INVALID_ARGUMENT says which cannot be used. Blocking."""
    validate_name(name)
    _require(files.rootfs, "rootfs", magic=b"\x53\xef", at=_EXT_MAGIC_AT, what="an ext4 file system")
    _require(files.kernel, "kernel", magic=b"\x7fELF", at=0, what="an uncompressed kernel (vmlinux, an ELF)")
    if files.initrd:
        _require(files.initrd, "initrd", magic=b"", at=0, what="")
    if files.modules and not (os.path.isabs(files.modules) and os.path.isdir(files.modules)):
        raise _bad(f"modules: {files.modules[:200]!a} is no folder")
    moment = now()
    return Image(
        id=new_image_id(),
        name=name,
        created_at=moment,
        updated_at=moment,
        managed=False,
        rootfs_path=files.rootfs,
        kernel_path=files.kernel,
        initrd_path=files.initrd,
        modules_dir=files.modules,
        build_size=os.stat(files.rootfs).st_blocks * 512,
    )


async def promote(root: Path, image: Image, *, progress: Progress) -> Image:
    """Copy an unmanaged image's files below root; the record as it is then. Under the lock of its name."""
    progress(ProgressEvent(step=_STEP, message=f"copying the files of {image.name}"))
    final = root / image.id
    async with filled(final, name=image.name, what=f"promoting {image.name}") as staging:
        size = os.stat(image.rootfs_path).st_blocks * 512
        await asyncio.to_thread(require_space, root, size, what=f"promoting {image.name}")
        # cp keeps holes, and shares blocks where the file system can
        target = staging / published.ROOTFS
        argv = ["cp", "--sparse=always", "--reflink=auto", "--", image.rootfs_path, str(target)]
        await run(argv, timeout_s=_COPY_TIMEOUT_S)
        target.chmod(0o444)
        seeded = await asyncio.to_thread(copy_home, staging / published.WORK_SEED, target)
        await asyncio.to_thread(_copy_others, image, staging, seeded=seeded)
    return await asyncio.to_thread(published.read_made, final)


def _copy_others(image: Image, staging: Path, *, seeded: bool) -> None:
    vmlinux = Path(image.kernel_path).read_bytes()
    record = Kernel(
        name=image.name,
        distro="",
        arch=os.uname().machine,
        kernel_version="",
        sha256=hashlib.sha256(vmlinux).hexdigest(),
        source=image.kernel_path,
        imported_at=now(),
    )
    write_kernel(staging, vmlinux, record=record)
    if image.initrd_path:
        shutil.copyfile(image.initrd_path, staging / INITRD)
    if image.modules_dir:
        shutil.copytree(
            image.modules_dir,
            staging / MODULES,
            symlinks=True,
            ignore=shutil.ignore_patterns("build", "source"),
        )
    made = msgspec.structs.replace(
        image,
        managed=True,
        updated_at=now(),
        rootfs_path=published.ROOTFS,
        work_seed_path=published.WORK_SEED if seeded else "",
        seeded_ssh_public_key_fingerprint="",
        kernel_path=VMLINUX,
        initrd_path=INITRD if image.initrd_path else "",
        modules_dir=MODULES if image.modules_dir else "",
    )
    published.write_record(staging, made)


def _require(path: str, field: str, *, magic: bytes, at: int, what: str) -> None:
    shown = ascii(path[:200])
    if not os.path.isabs(path):
        raise _bad(f"{field}: {shown} is not an absolute path")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _bad(f"{field}: {shown}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _bad(f"{field}: {shown} is no file")
        if os.pread(descriptor, len(magic), at) != magic:
            raise _bad(f"{field}: {shown} is not {what}")
    finally:
        os.close(descriptor)


def _bad(brief: str) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, brief)
