"""The real kernel, image and tools for tests: made once by the product's own services, then shared.

They lie in BANGER_TEST_ARTIFACTS (default: .artifacts in the clone, not in git), which has the layout
of a BANGER_HOME. Building takes about three minutes with a warm mirror; one builder at a time across
processes. `seed_home` gives an instance its own copy as hard links. Run as a script to build:
`python -m tests.artifacts`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from banger.config.instance import ensure_folders
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.errors import BangerError
from banger.image import catalog, initramfs
from banger.image.archive import Archive, debian_architecture
from banger.image.kernel import KernelService
from banger.image.service import ImageService
from banger.image.staging import staged
from banger.image.tools import Tool, ToolService, ensure_e2fsprogs
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, Kernel
from banger.system.ext4 import E2fsprogs

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGE = "debian-bookworm"
DOCKER_IMAGE = "debian-docker"
GUEST_PACKAGES = ("vim-tiny", "vim-common", "tmux", "libevent-core-2.1-7", "libutempter0")
"""What tests run in guests and the image lacks, with what it needs that the image lacks, too."""
BUILD_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Artifacts:
    """home: a BANGER_HOME; image's paths are absolute, below it. Read-only for tests."""

    home: Path
    paths: Paths
    image: Image
    kernel: Kernel
    vhost_device_vsock: Tool
    e2fsprogs: E2fsprogs
    guest_debs: Path  # a folder with GUEST_PACKAGES

    @property
    def vmlinux(self) -> Path:
        return Path(self.image.kernel_path)

    @property
    def modules_dir(self) -> Path:
        return Path(self.image.modules_dir)

    @property
    def rootfs(self) -> Path:
        return Path(self.image.rootfs_path)

    @property
    def work_seed(self) -> Path:
        return Path(self.image.work_seed_path)

    def initramfs(self) -> Path:
        """The shared initramfs with today's agent; HOST_UNSUITABLE when the agent was not built."""
        return initramfs.ensure_shared(
            self.modules_dir, initramfs.agent_binary(), self.home / "state/kernels/.initramfs" / self.image.id
        )

    def seed_home(self, home: Path) -> Paths:
        """Kernels, images and tools in another BANGER_HOME, as hard links (copies across disks).

        Its image service takes the image into its own store when it is first asked for.
        """
        target = resolve_paths({"BANGER_HOME": str(home)})
        for name in ("kernels", "images", "tools"):
            shutil.copytree(
                Path(self.paths.state_dir, name),
                Path(target.state_dir, name),
                copy_function=_link,
                symlinks=True,
                ignore=shutil.ignore_patterns(".lock-*", ".staging-*", ".build-*", ".old-*", "*.tmp"),
            )
        return target


class MemoryImages:
    """An ImageStore with a memory and nothing else."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}

    def list(self) -> Sequence[Image]:
        return list(self._images.values())

    def get(self, image_id: str) -> Image | None:
        return self._images.get(image_id)

    def by_name(self, name: str) -> Image | None:
        return next((image for image in self._images.values() if image.name == name), None)

    async def put(self, image: Image) -> None:
        self._images[image.id] = image

    async def seeded(self, image_id: str, *, path: str, fingerprint: str) -> None:
        self._images[image_id] = msgspec.structs.replace(
            self._images[image_id], work_seed_path=path, seeded_ssh_public_key_fingerprint=fingerprint
        )

    async def delete(self, image_id: str) -> bool:
        return self._images.pop(image_id, None) is not None


def artifacts_home() -> Path:
    return Path(os.environ.get("BANGER_TEST_ARTIFACTS") or REPOSITORY / ".artifacts").resolve()


_built: Artifacts | None = None
_building = threading.Lock()


def artifacts(progress: Progress = no_progress) -> Artifacts:
    """The artifacts, built when they are missing. Blocking; may be called inside a running event loop."""
    global _built
    with _building:
        if _built is None:
            outcome: list[Artifacts | BaseException] = []

            def work() -> None:
                try:
                    outcome.append(asyncio.run(asyncio.wait_for(_build(progress), BUILD_TIMEOUT_S)))
                except BaseException as error:
                    outcome.append(error)

            thread = threading.Thread(target=work, name="artifacts")
            thread.start()
            thread.join()
            if isinstance(outcome[0], BaseException):
                raise outcome[0]
            _built = outcome[0]
        return _built


def services(home: Path, settings: Settings | None = None) -> tuple[KernelService, ImageService, ToolService]:
    """The room's services on a home, with a store that lives in memory."""
    paths = resolve_paths({"BANGER_HOME": str(home)})
    settings = settings or Settings()
    tools = ToolService(paths, settings)
    kernels = KernelService(paths, settings, tools=tools)
    images = ImageService(paths, settings, store=MemoryImages(), kernels=kernels, tools=tools)
    return kernels, images, tools


def obtain(
    progress: Progress = no_progress, *, images: Sequence[str] = (), kernels: Sequence[str] = ()
) -> None:
    """More of the catalog into the artifacts' home, for instances that are seeded afterwards. Blocking."""
    home = artifacts(progress).home

    async def work() -> None:
        kernel_service, image_service, _tools = services(home)
        for name in kernels:
            await kernel_service.ensure(name, progress)
        for name in images:
            await image_service.resolve(name, progress)

    asyncio.run(asyncio.wait_for(work(), BUILD_TIMEOUT_S))


async def _build(progress: Progress) -> Artifacts:
    home = artifacts_home()
    ensure_folders(
        resolve_paths({"BANGER_HOME": str(home)})
    )  # private, whatever the umask: `make run` uses them
    kernels, images, tools = services(home)
    image = await images.resolve(IMAGE, progress)
    return Artifacts(
        home=home,
        paths=resolve_paths({"BANGER_HOME": str(home)}),
        image=image,
        kernel=await kernels.ensure(IMAGE, progress),
        vhost_device_vsock=await tools.ensure_tool("vhost-device-vsock", progress),
        e2fsprogs=await ensure_e2fsprogs(tools, progress),
        guest_debs=await _guest_debs(home, progress),
    )


async def _guest_debs(home: Path, progress: Progress) -> Path:
    folder = home / "guest-debs"

    def is_whole() -> bool:
        return all((folder / f"{name}.deb").is_file() for name in GUEST_PACKAGES)

    if is_whole():
        return folder
    async with staged(folder, already=is_whole) as staging:
        if staging is not None:
            async with Archive.open(resolve_paths({"BANGER_HOME": str(home)}).downloads_dir) as archive:
                for name in GUEST_PACKAGES:
                    found = await archive.find(
                        name, suite="bookworm", architecture=debian_architecture(), progress=progress
                    )
                    shutil.copyfile(await archive.download(found, progress=progress), staging / f"{name}.deb")
    return folder


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def main() -> int:
    """Build, saying what happens: each new message once on a line of its own."""
    said = ""

    def say(event: ProgressEvent) -> None:
        nonlocal said
        if event.message != said:
            said = event.message
            print(said, flush=True)

    try:
        found = artifacts(say)
        obtain(say, images=(DOCKER_IMAGE,), kernels=tuple(catalog.KERNELS))
    except BangerError as error:
        print(f"{error.brief}\n{error.hint or ''}", file=sys.stderr)
        return 1
    print(f"artifacts: {found.home} (image {found.image.id[:12]}, kernel {found.kernel.kernel_version})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
