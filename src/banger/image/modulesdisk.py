"""A kernel's modules for its guests: one read-only ext4, shared by all VMs of that kernel.

Its root is what a guest has at /lib/modules/<release>; the agent mounts it there, unless the image brings
modules of that release itself. Modules are unpacked, so that every modprobe can read them, whatever it was
built with. Made in a kernel's staging folder, or beside an older kernel under its lock, by rename.
"""

from __future__ import annotations

import asyncio
import os
import re
import tarfile
from pathlib import Path

from banger.image import modules
from banger.image.errors import invalid
from banger.image.staging import remove_tree
from banger.image.tools import ToolService, ensure_e2fsprogs
from banger.model.progress import Progress
from banger.system import ext4
from banger.system.run import run

DISK = "modules.ext4"
LABEL = "banger-modules"
MAX_TREE = 8 << 30
_TREE = "modules"
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,100}")
_BLOCK = 4096
_INODE = 256


async def finish_modules(folder: Path, version: str, *, tools: ToolService, progress: Progress) -> None:
    """Unpack and index the tree folder/modules, in place."""
    await asyncio.to_thread(_unpack, folder / _TREE)
    await _index(folder, version, tools=tools, progress=progress)


async def make_disk(tree: Path, disk: Path, *, tools: ToolService, progress: Progress) -> None:
    """The ext4 of an indexed tree, by rename. Everything in it is root's; symlinks are left out."""
    temporary, tar = disk.with_name(f".{disk.name}.tmp"), disk.with_name(f".{disk.name}.tar")
    programs = await ensure_e2fsprogs(tools, progress)
    try:
        size = await asyncio.to_thread(_write_tar, tree, tar)
        await ext4.make(temporary, size_bytes=size, programs=programs, tar=tar, label=LABEL, journal=False)
        temporary.chmod(0o444)
        await asyncio.to_thread(os.replace, temporary, disk)
    finally:
        tar.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)


def _unpack(tree: Path) -> None:
    """Compressed modules become plain ones. A crash in between leaves a staging folder."""
    for file in modules.index_tree(tree).values():
        if file.suffix == ".ko" or file.is_symlink():
            continue
        plain = file.with_suffix("")
        plain.write_bytes(modules.read_module(file))
        file.unlink()


async def _index(folder: Path, version: str, *, tools: ToolService, progress: Progress) -> None:
    """modules.dep and its kind, so that a guest's modprobe works without depmod.

    Debian makes them when the package is installed; here depmod gets the tree in the shape it knows.
    """
    if not _VERSION.fullmatch(version):
        raise invalid(f"not a kernel's version: {version[:100]!r}")
    depmod = await tools.ensure_tool("depmod", progress)
    base = folder / ".depmod"
    place = base / "lib/modules" / version
    place.parent.mkdir(parents=True)
    place.symlink_to(folder / _TREE)
    try:
        await run([depmod.path, "-b", str(base), version], timeout_s=120, env=depmod.env)
    finally:
        await asyncio.to_thread(remove_tree, base)


def _write_tar(tree: Path, target: Path) -> int:
    """Returns how large an ext4 of it must be, in bytes."""
    size = 0
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree.rglob("*")):
            info = tarfile.TarInfo(f"./{path.relative_to(tree).as_posix()}")
            if path.is_symlink():
                continue
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif path.is_file():
                info.size, info.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    archive.addfile(info, file)
            size += -(-info.size // _BLOCK) * _BLOCK + _BLOCK + _INODE
            if size > MAX_TREE:
                raise invalid(f"the kernel modules in {tree} are more than {MAX_TREE >> 30} GiB")
    return -(-(size + size // 16 + (8 << 20)) // (1 << 20)) << 20
