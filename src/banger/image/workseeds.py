"""Which work seed an image has: its own, or one made from the /root of a file system of the user's.

Owns `images/<id>/work-seed.tar`. A managed image is published with it; of an unmanaged one it is all that the
folder has, and it is made again when the user's file system has changed. Called when a work disk is made
(the vm room) and when images change (service.py). A crash leaves what seeds.py leaves, and at worst the
seed of an unmanaged image that is gone, which the next removal of an image sweeps.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from banger.image import seeds
from banger.image.initramfs import GuestFile
from banger.image.published import RECORD, WORK_SEED
from banger.image.staging import remove_tree
from banger.model.records import Image
from banger.system.lockorder import OrderedLock, Rank
from banger.system.threads import in_thread

log = logging.getLogger(__name__)


class SeedStore(Protocol):
    def get(self, image_id: str) -> Image | None: ...

    async def seeded(self, image_id: str, *, path: str, fingerprint: str) -> None: ...


class WorkSeeds:
    def __init__(self, root: Path, store: SeedStore) -> None:
        self._root = root
        self._store = store
        self._making = OrderedLock(Rank.LEAF, "work seed")

    async def ensure(self, image: Image, *, key: str, files: Sequence[GuestFile]) -> Path:
        """The seed of the image with these files in it, made where there is none that has this key.

        key: the fingerprint of the key in `files`. An image whose /root cannot be read has an empty seed,
        which is said in the log here and by doctor. IMAGE_INVALID for a broken one, NO_SPACE.
        """
        own = image.managed and image.work_seed_path and os.path.exists(image.work_seed_path)
        seed = Path(image.work_seed_path) if own else self._root / image.id / WORK_SEED
        stop = threading.Event()

        def make() -> seeds.Stamp:
            seed.parent.mkdir(mode=0o755, exist_ok=True)
            rootfs = "" if own else image.rootfs_path
            return seeds.prepare(seed, rootfs=rootfs, key=key, files=files, stop=stop)

        async with self._making:
            stamp = await in_thread(make, stop=stop.set)
        if stamp.problem:
            log.warning("the image %s has no work seed: %s", image.name, stamp.problem)
        path = "" if stamp.problem else str(seed)
        if (image.work_seed_path, image.seeded_ssh_public_key_fingerprint) != (path, key):
            await self._store.seeded(image.id, path=path, fingerprint=key)
        return seed

    async def sweep(self) -> None:
        """Remove the seeds of unmanaged images that are gone."""
        for folder in await asyncio.to_thread(_without_record, self._root):
            if self._store.get(folder.name) is None:
                await asyncio.to_thread(remove_tree, folder)


def _without_record(root: Path) -> list[Path]:
    return [
        folder
        for folder in root.glob("*")
        if not folder.name.startswith(".") and folder.is_dir() and not (folder / RECORD).exists()
    ]
