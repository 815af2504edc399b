"""Work disks: a fresh ext4 at its final size, filled from an image's work seed and given files.

The seed is the image's /root as a tar (made with the image, rootfs.py). Everything on a work disk
belongs to root; modes and symlinks are kept. Never mounted, no root needed; well under a second.
A crash leaves a `.tmp` beside the disk, which the next try overwrites.
"""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from banger.image.errors import from_os_error, invalid
from banger.image.initramfs import GuestFile
from banger.image.rootfs import clean_path
from banger.system import ext4
from banger.system.ext4 import E2fsprogs

MAX_SEED = 1 << 30
LABEL = "banger-work"


async def make_work_disk(
    path: str | Path,
    *,
    size_bytes: int,
    seed: str | Path | None,
    files: Sequence[GuestFile],
    programs: E2fsprogs,
) -> None:
    """Write a work disk to `path` by rename. files: paths below /root (".ssh/authorized_keys"), which
    win over the seed's; their folders are 0755, `.ssh` 0700. seed "" or None: an empty /root."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    content = await asyncio.to_thread(work_tar, Path(seed) if seed else None, files)
    try:
        try:
            await ext4.make(temporary, size_bytes=size_bytes, programs=programs, tar=content, label=LABEL)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise from_os_error(error, f"making {target}") from error


def work_tar(seed: Path | None, files: Sequence[GuestFile]) -> bytes:
    """The content of a work disk as a tar, root:root. Blocking. The seed is hostile until parsed."""
    out = io.BytesIO()
    replaced = {clean_path(file.path) for file in files}
    folders: set[str] = set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        root = tarfile.TarInfo(".")
        root.type, root.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(root)
        if seed is not None:
            _copy_seed(seed, archive, replaced, folders=folders)
        for file in files:
            path = clean_path(file.path)
            if not path:
                raise invalid("a file for the work disk without a name")
            parts = path.split("/")[:-1]
            for end in range(1, len(parts) + 1):
                parent = "/".join(parts[:end])
                if parent not in folders:
                    folders.add(parent)
                    info = tarfile.TarInfo(f"./{parent}")
                    info.type, info.mode = tarfile.DIRTYPE, 0o700 if parts[end - 1] == ".ssh" else 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(f"./{path}")
            info.mode, info.size = file.mode & 0o7777, len(file.content)
            archive.addfile(info, io.BytesIO(file.content))
    return out.getvalue()


def _copy_seed(seed: Path, archive: tarfile.TarFile, replaced: set[str], *, folders: set[str]) -> None:
    try:
        if seed.stat().st_size > MAX_SEED:
            raise invalid(f"the work seed {seed} is larger than {MAX_SEED >> 20} MiB")
        with tarfile.open(seed, "r:") as source:
            for member in source:
                path = clean_path(member.name)
                if not path or path in replaced:
                    continue
                if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                    continue  # sockets, pipes and devices have no business in a home
                member.name = f"./{path}"
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.pax_headers = {}
                if member.isdir():
                    folders.add(path)
                archive.addfile(member, source.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise invalid(f"the work seed {seed} is broken", details=str(error)) from error
    except OSError as error:
        raise from_os_error(error, f"reading the work seed {seed}") from error
