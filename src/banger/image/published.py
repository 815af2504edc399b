"""Folders of published images: their record, their names, and how one goes away.

`images/<id>/image.json` is the image's record with relative paths. A folder is published by one rename and
discarded by one; after a crash a discarded folder is a `.old-<id>`, which the next change sweeps.
Used by the image room and by doctor. Blocking, all of it; there are few images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.kernel import MODULES, VMLINUX
from banger.image.staging import remove_tree, write_atomically
from banger.model.records import Image, now

RECORD = "image.json"
ROOTFS = "rootfs.ext4"
WORK_SEED = "work-seed.tar"
OLD = ".old-"
_RELATIVE = ("rootfs_path", "work_seed_path", "kernel_path", "initrd_path", "modules_dir")


def read_image(folder: Path) -> Image | None:
    """The record of a published folder, its paths made absolute; None where there is none."""
    try:
        image = msgspec.json.decode((folder / RECORD).read_bytes(), type=Image)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, msgspec.ValidationError, OSError) as error:
        raise invalid(f"{folder / RECORD} cannot be read", details=str(error)) from error
    paths: dict[str, str] = {}
    for key in _RELATIVE:
        value: str = getattr(image, key)
        if value.startswith("/") or ".." in value.split("/"):
            raise invalid(f"{folder / RECORD} has a path that leaves its folder: {value[:200]!r}")
        paths[key] = str(folder / value) if value else ""
    return msgspec.structs.replace(image, artifact_dir=str(folder), **paths)


def read_made(folder: Path) -> Image:
    """As read_image, of a folder that has just been published."""
    image = read_image(folder)
    assert image is not None, folder
    return image


def new_record(staging: Path, *, image_id: str, name: str, initrd: str) -> Image:
    """Of an image that is made in staging, with its kernel: what all have, with relative paths."""
    moment = now()
    return Image(
        id=image_id,
        name=name,
        created_at=moment,
        updated_at=moment,
        rootfs_path=ROOTFS,
        work_seed_path=WORK_SEED,
        kernel_path=VMLINUX,
        initrd_path=initrd,
        modules_dir=MODULES,
        build_size=(staging / ROOTFS).stat().st_blocks * 512,
    )


def write_record(folder: Path, image: Image) -> None:
    """image: with relative paths."""
    write_atomically(folder / RECORD, msgspec.json.format(msgspec.json.encode(image)))


def rename(folder: Path, name: str) -> None:
    """Give a published image another name, so that a folder taken over after a crash has it, too."""
    image = msgspec.json.decode((folder / RECORD).read_bytes(), type=Image)
    write_record(folder, msgspec.structs.replace(image, name=name))


def all_published(root: Path) -> Iterator[Image]:
    """Those that can be read."""
    if not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        try:
            image = read_image(folder)
        except ImageError:
            continue
        if image is not None:
            yield image


def find_published(root: Path, name: str) -> Image | None:
    return next((image for image in all_published(root) if image.name == name), None)


def discard(root: Path, image_id: str) -> None:
    """Take an image's folder away, and what an earlier crash left of others."""
    try:
        (root / image_id).rename(root / f"{OLD}{image_id}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise from_os_error(error, f"removing {root / image_id}") from error
    for path in root.glob(f"{OLD}*"):
        remove_tree(path)
