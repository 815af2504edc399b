"""KernelService: the kernels that guests boot, in Paths.kernels_dir.

One folder per kernel: `vmlinux` (trimmed ELF), `modules/` (the module tree: kernel/, modules.builtin),
`modules.ext4` (the same for guests, modulesdisk.py), `kernel.json` (its record, and vmlinux's size and time
as they were when its digest was taken). Made in a staging folder and published by rename, one maker at a
time across processes; a crash leaves a staging folder, or one on its way out (`.old-`), which the next try
removes. Called by the image service, the daemon and tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.errors import ErrorCode
from banger.image import bzimage, catalog, deb, elf
from banger.image.archive import Archive, OpenArchive, debian_architecture
from banger.image.errors import ImageError, invalid, not_found
from banger.image.modulesdisk import DISK, finish_modules, make_disk
from banger.image.staging import exclusive, remove_tree, require_space, staged
from banger.image.tools import ToolService
from banger.model.names import validate_name
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, Kernel, now

RECORD = "kernel.json"
VMLINUX = "vmlinux"
MODULES = "modules"
INITRD = "initrd.img"
_STEP = "kernel"
_SPACE = 256 << 20

Fill = Callable[[Path], Kernel]
"""Puts a kernel into a folder; blocking."""


class MakeDisk(Protocol):
    """modulesdisk.make_disk; tests bring one that is quick."""

    def __call__(
        self, tree: Path, disk: Path, *, tools: ToolService, progress: Progress
    ) -> Awaitable[None]: ...


class KernelFile(msgspec.Struct, frozen=True, kw_only=True):
    """kernel.json. size and mtime_ns: vmlinux's, so that an unchanged file need not be hashed again."""

    record: Kernel
    size: int
    mtime_ns: int


def read_kernel(folder: Path) -> KernelFile | None:
    """The kernel in a folder; None where there is none. IMAGE_INVALID for a broken record. Blocking."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=KernelFile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, msgspec.ValidationError, OSError) as error:
        raise invalid(
            f"{folder / RECORD} cannot be read", details=str(error), hint=f"remove {folder}; it is made again"
        ) from error


def check_kernel(folder: Path, kernel: KernelFile) -> None:
    """vmlinux is the file whose digest was recorded. Blocking: a stat, or a hash where that differs."""
    path = folder / VMLINUX
    try:
        found = path.stat()
        if found.st_size == kernel.size and found.st_mtime_ns == kernel.mtime_ns:
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise invalid(f"{path} cannot be read", details=str(error)) from error
    if digest != kernel.record.sha256:
        raise invalid(
            f"{path} is not the kernel that was put there",
            details=f"sha256 {digest}, recorded {kernel.record.sha256}",
            hint=f"remove {folder}; it is made again at the next start",
        )


class KernelService:
    """Kernels by name. open_archive: makes a session with Debian's archive when one is needed.

    images: all that are in the store; a kernel that one of them has is not removed.
    """

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        *,
        tools: ToolService,
        open_archive: OpenArchive | None = None,
        images: Callable[[], Sequence[Image]] = tuple,
        make_disk: MakeDisk = make_disk,
    ) -> None:
        self._tools = tools
        self._images = images
        self._make_disk = make_disk
        self._root = Path(paths.kernels_dir)
        self._open_archive = open_archive or (
            lambda: Archive.open(paths.downloads_dir, mirror=settings.debian_mirror)
        )

    def list(self) -> list[Kernel]:
        """The kernels that are here, by name; broken ones are left out. Blocking, briefly."""
        found: list[Kernel] = []
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else []:
            if folder.name.startswith("."):
                continue
            try:
                kernel = read_kernel(folder)
            except Exception:
                continue
            if kernel is not None:
                found.append(kernel.record)
        return found

    def get(self, name: str) -> Kernel:
        """NOT_FOUND where it is not here (it may still be in the catalog)."""
        kernel = read_kernel(self._folder(name))
        if kernel is None:
            raise not_found(f"no kernel {name!r} here", hint="banger kernel list shows those that are")
        return kernel.record

    def folder(self, name: str) -> Path:
        """Where the kernel's vmlinux and modules/ are."""
        return self._folder(name)

    async def ensure(self, name: str, progress: Progress = no_progress) -> Kernel:
        """The kernel, fetched from Debian's archive when it is not here; checked against its digest."""
        folder = self._folder(name)
        kernel = await asyncio.to_thread(read_kernel, folder)
        if kernel is None:
            entry = catalog.KERNELS.get(name)
            if entry is None:
                raise not_found(
                    f"no kernel {name!r}, neither here nor in the catalog",
                    hint=f"the catalog has {', '.join(sorted(catalog.KERNELS))}",
                )
            kernel = await self._pull(entry, folder, progress)
        await asyncio.to_thread(check_kernel, folder, kernel)
        if not (folder / DISK).exists() and (folder / MODULES / "kernel").is_dir():
            # of a banger that put modules into images
            async with exclusive(_lock(folder)):
                if not (folder / DISK).exists():
                    await self._make_disk(
                        folder / MODULES, folder / DISK, tools=self._tools, progress=progress
                    )
        return kernel.record

    async def link(self, name: str, target: Path) -> str:
        """link_kernel, while nobody can remove it. NOT_FOUND where somebody just has."""
        folder = self._folder(name)
        async with exclusive(_lock(folder)):
            self.get(name)
            return await asyncio.to_thread(link_kernel, folder, target)

    async def remove(self, name: str) -> Kernel:
        """Forget a kernel. IN_USE names the images that were made with it, or point at it."""
        folder = self._folder(name)
        async with exclusive(_lock(folder)):
            kernel = self.get(name)
            users = await asyncio.to_thread(self._users, folder, kernel)
            if users:
                shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
                raise ImageError(
                    ErrorCode.IN_USE,
                    f"the kernel {name} is in use by {len(users)} image{'s' if len(users) > 1 else ''}",
                    hint=f"delete first: {shown}",
                    data={"images": users},
                )
            await asyncio.to_thread(_discard, folder)
        return kernel

    def _users(self, folder: Path, kernel: Kernel) -> tuple[str, ...]:
        """The names of images that have this kernel; of an earlier one of its name does not count."""
        found = []
        for image in self._images():
            paths = (image.kernel_path, image.initrd_path, image.modules_dir)
            points = not image.managed and any(Path(path).is_relative_to(folder) for path in paths if path)
            try:
                own = read_kernel(Path(image.artifact_dir)) if image.artifact_dir else None
            except ImageError:
                own = None  # a broken image needs nothing
            same = own is not None and (own.record.name, own.record.sha256) == (kernel.name, kernel.sha256)
            if points or same:
                found.append(image.name)
        return tuple(sorted(found))

    async def take_in(self, name: str, fill: Fill, progress: Progress = no_progress) -> Kernel:
        """Publish a kernel that `fill` puts into a folder; its modules are indexed. ALREADY_EXISTS."""
        folder = self._folder(validate_name(name))
        await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
        async with staged(folder, already=folder.exists) as staging:
            if staging is None:
                raise ImageError(
                    ErrorCode.ALREADY_EXISTS,
                    f"there is a kernel {name} already",
                    hint=f"choose another name, or: banger kernel rm {name}",
                )
            progress(ProgressEvent(step=_STEP, message=f"importing the kernel {name}"))
            record = await asyncio.to_thread(fill, staging)
            if (staging / MODULES / "kernel").is_dir():
                await self._finish(staging, record, progress)
        return record

    async def _finish(self, staging: Path, kernel: Kernel, progress: Progress) -> None:
        await finish_modules(staging, kernel.kernel_version, tools=self._tools, progress=progress)
        await self._make_disk(staging / MODULES, staging / DISK, tools=self._tools, progress=progress)

    def _folder(self, name: str) -> Path:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise not_found(f"no kernel {name!r}")
        return self._root / name

    async def _pull(self, entry: catalog.KernelEntry, folder: Path, progress: Progress) -> KernelFile:
        architecture = debian_architecture()
        await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(require_space, folder.parent, _SPACE, what=f"the kernel {entry.name}")
        async with staged(
            folder,
            waiting=lambda: progress(
                ProgressEvent(step=_STEP, message=f"another process is fetching the kernel {entry.name}")
            ),
            already=lambda: read_kernel(folder) is not None,
        ) as staging:
            if staging is not None:
                async with self._open_archive() as archive:
                    meta = await archive.find(
                        entry.package.format(arch=architecture),
                        suite=entry.suite,
                        architecture=architecture,
                        progress=progress,
                    )
                    real = next((d for d in meta.depends if d[0].startswith("linux-image-")), None)
                    if real is None:
                        raise invalid(f"{meta.name} of {entry.suite} depends on no kernel package")
                    package = await archive.find(
                        real[0], suite=entry.suite, architecture=architecture, version=real[1]
                    )
                    file = await archive.download(package, progress=progress, step=_STEP)
                progress(ProgressEvent(step=_STEP, message=f"unpacking the kernel {package.version}"))
                record = await asyncio.to_thread(
                    _unpack, file, staging, entry=entry, source=f"{package.name} {package.version}"
                )
                await self._finish(staging, record, progress)
        kernel = await asyncio.to_thread(read_kernel, folder)
        assert kernel is not None  # published just now, or found under the lock
        return kernel


def _lock(folder: Path) -> Path:
    return folder.parent / f".lock-{folder.name}"


def _discard(folder: Path) -> None:
    """By one rename: after a crash it is whole, or gone but for what the next one sweeps. Blocking."""
    aside = folder.parent / f".old-{folder.name}"
    remove_tree(aside)
    folder.rename(aside)
    remove_tree(aside)


def _unpack(package: Path, staging: Path, *, entry: catalog.KernelEntry, source: str) -> Kernel:
    """vmlinux, modules/ and kernel.json out of a kernel's .deb. Blocking, about two seconds."""

    def wanted(path: str) -> str | None:
        parts = path.split("/")
        if parts[0] == "usr" and parts[1:2] == ["lib"]:
            parts = parts[1:]  # from Debian 13 on, the modules are below /usr
        if parts[0] == "boot" and len(parts) == 2 and parts[1].startswith("vmlinuz-"):
            return parts[1]
        if parts[:2] == ["lib", "modules"] and len(parts) > 3:
            return "/".join([MODULES, *parts[3:]])
        return None

    written = deb.extract(package, staging, wanted)
    images = [path for path in written if path.startswith("vmlinuz-")]
    if len(images) != 1 or not any(path.startswith(f"{MODULES}/kernel/") for path in written):
        raise invalid(f"{source} does not have one kernel and its modules")
    image = staging / images[0]
    if image.stat().st_size > bzimage.MAX_BZIMAGE:
        raise invalid(f"the kernel of {source} is too large")
    vmlinux = elf.trim_kernel(bzimage.extract_kernel(image.read_bytes()))
    image.unlink()
    record = Kernel(
        name=entry.name,
        distro=entry.distro,
        arch=os.uname().machine,
        kernel_version=images[0].removeprefix("vmlinuz-"),
        sha256=hashlib.sha256(vmlinux).hexdigest(),
        source=source,
        imported_at=now(),
    )
    write_kernel(staging, vmlinux, record=record)
    return record


def write_kernel(folder: Path, vmlinux: bytes, *, record: Kernel) -> None:
    """vmlinux and its record into a folder (a staging folder). Blocking."""
    path = folder / VMLINUX
    path.write_bytes(vmlinux)
    path.chmod(0o644)
    found = path.stat()
    content = KernelFile(record=record, size=found.st_size, mtime_ns=found.st_mtime_ns)
    (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(content)))


def link_kernel(source: Path, target: Path) -> str:
    """The kernel of folder `source` in folder `target` too, as hard links (copies across disks). Blocking.

    Returns the name of its own initrd there, "" where it has none.
    """

    def link(old: str, new: str) -> str:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)
        return new

    link(os.fspath(source / VMLINUX), os.fspath(target / VMLINUX))
    link(os.fspath(source / RECORD), os.fspath(target / RECORD))
    shutil.copytree(source / MODULES, target / MODULES, copy_function=link)
    if (source / DISK).exists():
        link(os.fspath(source / DISK), os.fspath(target / DISK))
    if not (source / INITRD).exists():
        return ""
    link(os.fspath(source / INITRD), os.fspath(target / INITRD))
    return INITRD


def modules_disk(image: Image) -> str:
    """The disk with the modules that guests of this image get; "" for none: an image of the user's own files,
    or one made when modules were put into images."""
    path = os.path.join(image.artifact_dir, DISK)
    return path if image.artifact_dir and os.path.exists(path) else ""
