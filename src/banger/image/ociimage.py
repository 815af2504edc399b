"""From a pulled image's layers to what a boot needs: one clean tar, the root file system, the work seed.

Layers are flattened in one thread and rewritten (rootfs.py) in another, joined by a pipe: nothing is unpacked
on the host, and memory does not depend on the image's size. Called by pulling.py with a staging folder;
what a crash leaves is in that folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from banger.image import rootfs
from banger.image.flatten import Stopped, flatten
from banger.image.oci.blobs import in_thread
from banger.image.oci.config import ImageConfig
from banger.image.oci.manifest import Layer
from banger.image.oci.reference import DEFAULT_TAG, Reference
from banger.image.rootfs import Modules, Rewritten
from banger.model.names import MAX_NAME_LENGTH
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import Image
from banger.system import ext4
from banger.system.ext4 import E2fsprogs

MIN_SIZE = 1 << 30
MIB = 1 << 20
LABEL = "banger-root"
ROOT_TAR = "root.tar"
_STEP = "rootfs"
_TELL = 1 << 20


def image_name(reference: Reference) -> str:
    """The name of one that was given none: `alpine`, `debian-12`: its last part, and its tag but latest."""
    words = [reference.repository.rpartition("/")[2]]
    if reference.tag not in ("", DEFAULT_TAG):
        words.append(reference.tag)
    elif not reference.tag:
        words.append(reference.digest.partition(":")[2][:12])
    return as_name("-".join(words))


def as_name(text: str) -> str:
    """The nearest thing to text that is a name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name[:MAX_NAME_LENGTH].strip("-") or "image"


def with_config(image: Image, config: ImageConfig) -> Image:
    """The record, with what it keeps of the image's config."""
    return msgspec.structs.replace(
        image,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env=config.env,
        workdir=config.working_dir,
        user=config.user,
    )


async def make_rootfs(
    layers: Sequence[Layer],
    staging: Path,
    *,
    rootfs_path: Path,
    seed_path: Path,
    size_bytes: int | None,
    modules: Modules | None,
    programs: E2fsprogs,
    what: str,
    progress: Progress,
) -> None:
    """Write rootfs_path (ext4, 0444) and seed_path (the tar of /root). size_bytes: None for content × 1.5."""
    tar = staging / ROOT_TAR
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    told = 0

    def heard(count: int) -> None:
        nonlocal told
        if count >= told + _TELL:
            told = count
            event = ProgressEvent(step=_STEP, message=f"unpacking {what}", current=count)
            loop.call_soon_threadsafe(progress, event)

    progress(ProgressEvent(step=_STEP, message=f"unpacking {what}"))
    rewritten = await in_thread(
        lambda: replay(layers, tar, seed_path, modules=modules, stop=stop, heard=heard), stop=stop.set
    )
    size = size_bytes or max(MIN_SIZE, rewritten.content_bytes * 3 // 2)
    progress(ProgressEvent(step=_STEP, message=f"writing the root file system of {what}"))
    await ext4.make(rootfs_path, size_bytes=-(-size // MIB) * MIB, programs=programs, tar=tar, label=LABEL)
    await ext4.set_xattrs(rootfs_path, rewritten.xattrs, programs=programs)
    await ext4.check(rootfs_path, programs=programs)
    rootfs_path.chmod(0o444)
    tar.unlink()


def replay(
    layers: Sequence[Layer],
    tar: Path,
    seed: Path,
    *,
    modules: Modules | None = None,
    stop: threading.Event | None = None,
    heard: Callable[[int], None] = lambda count: None,
) -> Rewritten:
    """The layers as one tar for mke2fs, and /root's. Blocking. heard: told the bytes unpacked so far.

    Works in tar's folder. What a layer is refused for is raised; Stopped once `stop` is set.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    given_up = stop or threading.Event()
    problems: list[BaseException] = []

    def check(count: int) -> None:
        if given_up.is_set():
            raise Stopped
        heard(count)

    def pour() -> None:
        try:
            with os.fdopen(write_end, "wb", buffering=1 << 18) as out:
                flatten(layers, out, work=tar.parent, heard=check)
        except BaseException as error:
            problems.append(error)

    def written(_count: int) -> None:
        if given_up.is_set():
            raise Stopped

    pouring = threading.Thread(target=pour, name="flatten")
    pouring.start()
    result: Rewritten | None = None
    failure: BaseException | None = None
    try:
        with os.fdopen(read_end, "rb", buffering=1 << 18) as stream:
            result = rootfs.rewrite(stream, tar, seed, add_modules=modules, written=written)
            while stream.read(1 << 18):
                pass  # what follows the archive's end
    except BaseException as error:
        failure = error
    pouring.join()
    for problem in problems:
        # a pipe that broke did so because its reader had failed; any other problem came first
        if failure is None or not _broken_pipe(problem):
            raise problem
    if failure is not None:
        raise failure
    assert result is not None
    return result


def _broken_pipe(error: BaseException | None) -> bool:
    return isinstance(error, BrokenPipeError) or (
        error is not None and isinstance(error.__cause__, BrokenPipeError)
    )
